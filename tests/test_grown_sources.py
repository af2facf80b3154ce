"""Sources that change between builds: what was read is not read again; what is gone is counted."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate import AnnotateJob
from pipeline.build import build
from pipeline.clip import clips_from_parquet
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.decode.decoder import DecodeLimits
from pipeline.feed import decode_chunk, make_chunks
from pipeline.forecast import forecast
from pipeline.inspection.originals import Wanted, read_originals
from pipeline.plan import PlannedSource, make_plan, read_plan
from pipeline.removal import find_sources, remove_sources
from pipeline.select import read_selection
from pipeline.sources.listing import list_sources
from pipeline.sources.media import Unreachable
from tests.conftest import moving_square, write_mp4
from tests.test_source_tars import write_tar
from tests.web import Web


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("films")
    return [
        write_mp4(folder / f"{seed}.mp4", moving_square(30, seed)).read_bytes() for seed in range(3)
    ]


def config(tmp_path: Path, *sources: str) -> BuildConfig:
    return BuildConfig(sources=sources, out=str(tmp_path / "data"), executor="inline")


def plan(tmp_path: Path, *sources: str) -> list[PlannedSource]:
    """The plan phase alone."""
    settings = config(tmp_path, *sources)
    store = Store(settings.out)
    store.prepare()
    return make_plan(settings, list_sources(sources, settings.limits), store)


def bodies(web: Web) -> list[str]:
    """What was read since this was asked last, more than its first byte."""
    paths = [path for path, asked in web.asked if asked != "bytes=0-0"]
    web.asked.clear()
    return sorted(paths)


def test_a_manifest_that_grew_reads_the_new_files_only(
    tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    for number, film in enumerate(films):
        (tmp_path / "web" / f"{number}.mp4").write_bytes(film)
    rows = [f"{web.url}/0.mp4,a", f"{web.url}/1.mp4,b", f"{web.url}/2.mp4,c"]
    manifest = tmp_path / "all.csv"
    manifest.write_text("\n".join(["url,caption", *rows[:2]]))
    first = plan(tmp_path, str(manifest))
    assert bodies(web) == ["/0.mp4", "/1.mp4"]
    manifest.write_text("\n".join(["url,caption", rows[2], *rows[:2]]))
    second = plan(tmp_path, str(manifest))
    assert bodies(web) == ["/2.mp4"]
    assert second[:2] == first
    assert second[2].unit > first[0].unit
    (tmp_path / "web" / "0.mp4").write_bytes(films[0] + b"longer")
    plan(tmp_path, str(manifest))
    assert bodies(web) == ["/0.mp4"]


def test_an_unchanged_tar_behind_a_url_is_not_read_again(
    tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    files = {f"{number}.mp4": film for number, film in enumerate(films)} | {"0.txt": b"a cat"}
    write_tar(tmp_path / "web" / "a.tar", files)
    first = plan(tmp_path, f"{web.url}/a.tar")
    assert bodies(web) == ["/a.tar"]
    assert plan(tmp_path, f"{web.url}/a.tar") == first
    assert bodies(web) == []
    assert first[0].sidecar_sha256 == hashlib.sha256(b"a cat").hexdigest()


def test_a_plan_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, web: Web, films: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, film in enumerate(films):
        (tmp_path / "web" / f"{number}.mp4").write_bytes(film)
    write_tar(tmp_path / "web" / "a.tar", {"a.mp4": films[0] + b"x"})
    sources = [f"{web.url}/{name}" for name in ("0.mp4", "1.mp4", "a.tar", "2.mp4")]
    settings = config(tmp_path, *sources)
    store = Store(settings.out)
    store.prepare()
    monkeypatch.setattr("pipeline.inventory._JOURNAL_SECONDS", -1.0)
    monkeypatch.setattr("pipeline.inventory._WRITING_SHARE", 1e9)

    def killed(text: str) -> None:
        if text.startswith("plan: 3 of 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_plan(settings, list_sources(sources), store, killed)
    bodies(web)
    planned = make_plan(settings, list_sources(sources), store)
    assert len(bodies(web)) == 1
    assert store.storage.names("tmp") == []
    undisturbed = replace(settings, out=str(tmp_path / "other"))
    other = Store(undisturbed.out)
    other.prepare()
    assert make_plan(undisturbed, list_sources(sources), other) == planned


def test_a_member_that_cannot_be_read_is_tried_again(tmp_path: Path, films: list[bytes]) -> None:
    tar = write_tar(tmp_path / "a.tar", {"0.mp4": films[0], "1.mp4": bytes(1 << 20)})
    small = DecodeLimits(max_file_bytes=1 << 19)
    settings = replace(config(tmp_path, str(tar)), limits=small)
    store = Store(settings.out)
    store.prepare()
    for _ in range(2):
        rows = make_plan(settings, list_sources([str(tar)]), store)
        assert [row.skipped for row in rows] == ["", "error:too_large"]
    rows = make_plan(config(tmp_path, str(tar)), list_sources([str(tar)]), store)
    assert [row.skipped for row in rows] == ["", ""]


def test_sidecars_behind_urls_are_read_again_when_they_change(
    tmp_path: Path, s3: str, films: list[bytes]
) -> None:
    root = f"{s3}/{tmp_path.name}"
    files, path = fsspec.core.url_to_fs(root)
    files.pipe_file(f"{path}/a.mp4", films[0])
    files.pipe_file(f"{path}/a.txt", b"a cat")
    first = plan(tmp_path, root)
    files.pipe_file(f"{path}/a.txt", b"a dog")
    second = plan(tmp_path, root)
    assert first[0].source_id == second[0].source_id
    assert second[0].sidecar_sha256 == hashlib.sha256(b"a dog").hexdigest()


def test_local_files_of_the_same_size_and_time_are_not_read_again(
    tmp_path: Path, films: list[bytes]
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(films[0])
    tar = write_tar(tmp_path / "b.tar", {"b.mp4": films[1]})
    first = plan(tmp_path, str(path), str(tar))
    for each in (path, tar):
        times = os.stat(each).st_mtime_ns
        each.write_bytes(bytes(each.stat().st_size))
        os.utime(each, ns=(times, times))
    assert plan(tmp_path, str(path), str(tar)) == first


def test_a_file_that_is_missing_is_counted_and_taken_up_when_it_comes(
    tmp_path: Path, films: list[bytes]
) -> None:
    (tmp_path / "0.mp4").write_bytes(films[0])
    (tmp_path / "all.csv").write_text("path,caption\n0.mp4,one\n1.mp4,two\n")
    settings = config(tmp_path, str(tmp_path / "all.csv"))
    totals = build(settings, "select")
    assert totals["n_error"] == 1
    assert totals["n_in"] == totals["n_kept"] + totals["n_dropped"] + totals["n_error"]
    rows = read_selection(Store(settings.out)) or []
    assert [(row.uri, row.outcome) for row in rows if row.uri == "1.mp4"] == [
        ("1.mp4", "error:open")
    ]
    commits = Store(settings.out).committed()
    assert build(settings, "select") == totals
    assert Store(settings.out).committed() == commits
    (tmp_path / "1.mp4").write_bytes(films[1])
    assert build(settings, "select")["n_error"] == 0
    rows = read_selection(Store(settings.out)) or []
    assert {(row.uri, row.caption) for row in rows} == {("0.mp4", "one"), ("1.mp4", "two")}


def test_what_changes_or_fails_after_it_was_planned_is_an_error_row(
    tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    write_tar(tmp_path / "web" / "a.tar", {"0.mp4": films[0]})
    for number in (1, 2):
        (tmp_path / "web" / f"{number}.mp4").write_bytes(films[number])
    sources = [str(tmp_path / "web" / "a.tar"), f"{web.url}/1.mp4", f"{web.url}/2.mp4"]
    planned = plan(tmp_path, *sources)
    write_tar(tmp_path / "web" / "a.tar", {"0.mp4": films[0][::-1]})
    (tmp_path / "web" / "1.mp4").unlink()
    web.failures["/2.mp4"] = [503] * 8
    job = AnnotateJob(config(tmp_path, *sources), str(tmp_path / "data"))
    outcomes = [[clip.outcome for clip in job.scan(source)] for source in planned[:2]]
    assert outcomes == [["error:open"]] * 2
    with pytest.raises(Unreachable, match="503"):
        job.scan(planned[2])
    assert job.scan(planned[2])[0].outcome == ""


def test_a_server_that_fails_at_planning_costs_its_own_files(
    tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    for number in (0, 1):
        (tmp_path / "web" / f"{number}.mp4").write_bytes(films[number])
    (tmp_path / "all.csv").write_text(f"url\n{web.url}/0.mp4\n{web.url}/1.mp4\n")
    for statuses in ([500] * 9, [206, *[500] * 9]):  # no facts; facts, but no bytes
        web.failures["/1.mp4"] = statuses
        first, second = plan(tmp_path, str(tmp_path / "all.csv"))
        assert (first.skipped, second.skipped) == ("", "error:open")
    web.failures.clear()
    assert [row.skipped for row in plan(tmp_path, str(tmp_path / "all.csv"))] == ["", ""]


def test_a_dataset_of_the_version_before_goes_on(tmp_path: Path, films: list[bytes]) -> None:
    (tmp_path / "0.mp4").write_bytes(films[0])
    (tmp_path / "0.txt").write_text("a cat")
    settings = config(tmp_path, str(tmp_path / "0.mp4"))
    build(settings, "select")
    (row,) = read_plan(Store(settings.out))
    earlier = {
        "source_id": row.source_id,
        "uri": row.uri,
        "path": row.location,
        "kind": row.kind,
        "size_bytes": row.size_bytes,
        "mtime_ns": int(row.stamp),
        "sidecar_path": row.sidecars[0],
        "sidecar_sha256": row.sidecar_sha256,
        "unit": 0,
        "generation": 0,
        "skipped": "",
        "gaps": "{}",
    }
    pq.write_table(pa.Table.from_pylist([earlier]), tmp_path / "data" / "plan.parquet")
    assert read_plan(Store(settings.out)) == [row]
    commits = Store(settings.out).committed()
    build(settings, "select")
    assert Store(settings.out).committed() == commits


@pytest.mark.parametrize("kind", ["tar", "url", "tar behind a url"])
def test_originals_forecasts_and_removals_know_every_kind(
    kind: str, tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    (tmp_path / "web" / "0.mp4").write_bytes(films[0])
    tar = write_tar(tmp_path / "web" / "a.tar", {"0.mp4": films[0], "1.mp4": films[1]})
    source = {"tar": str(tar), "url": f"{web.url}/0.mp4"}.get(kind, f"{web.url}/a.tar")
    settings = config(tmp_path, source)
    made = forecast(settings, list_sources([source]), 5, (), 1)
    num_films = 1 if kind == "url" else 2
    assert made.outcomes["kept"] == made.num_sampled == num_films
    assert made.num_files == (2 if kind == "tar" else 1)
    assert forecast(settings, list_sources([source]), 1, (), 1).num_sampled == 1
    build(settings, "select")
    rows = read_selection(Store(settings.out)) or []
    wanted = [Wanted(row.source_id, row.request()) for row in rows if row.outcome == "kept"]
    shown = read_originals(settings.out, wanted, seconds=60)
    assert [each.reason for each in shown] == [""] * num_films
    (source_id,) = find_sources(settings.out, ["0.mp4"])
    remove_sources(settings.out, [source_id])
    build(settings, "plan")
    after = {row.source_id: row for row in read_plan(Store(settings.out))}
    assert after[source_id] == replace(
        after[source_id], uri="", location="", stamp="", skipped="removed"
    )
    os.utime(tar, (1, 1))
    (tmp_path / "web" / "0.mp4").unlink()
    again = [each.reason for each in read_originals(settings.out, wanted, seconds=60)]
    assert set(again) <= {"gone", "changed"}


def test_a_film_written_over_since_the_plan_is_an_error_and_never_passed_for_the_other(
    tmp_path: Path, films: list[bytes]
) -> None:
    (tmp_path / "films").mkdir()
    film = tmp_path / "films" / "0.mp4"
    film.write_bytes(films[0])
    (row,) = plan(tmp_path, str(film.parent))
    job = AnnotateJob(config(tmp_path, str(film.parent)), str(tmp_path / "data"))
    clip = next(each for each in job.scan(row) if not each.outcome)
    (chunk,) = make_chunks([clip], [clip.request()], {row.source_id: row}, job.recipe, 1)
    assert decode_chunk(chunk).error is None
    film.write_bytes(films[1])
    assert [each.outcome for each in job.scan(row)] == ["error:open"]
    assert decode_chunk(chunk).error == "open"


@pytest.mark.ray
def test_on_ray_every_kind_is_decoded_where_it_is_needed(
    tmp_path: Path, web: Web, films: list[bytes]
) -> None:
    (tmp_path / "web" / "2.mp4").write_bytes(films[2])
    tar = write_tar(tmp_path / "web" / "a.tar", {"0.mp4": films[0], "1.mp4": films[1]})
    sources = (str(tar), f"{web.url}/2.mp4", f"{web.url}/a.tar?again")
    settings = replace(config(tmp_path, *sources), executor="ray", num_cpus=2)
    build(settings, "select")
    build(replace(settings, executor="inline", out=str(tmp_path / "inline")), "select")
    folders = (tmp_path / "data", tmp_path / "inline")
    one, other = (clips_from_parquet(folder / "selection.parquet") for folder in folders)
    assert one == other
    assert sum(row.outcome == "kept" for row in one) == 3
