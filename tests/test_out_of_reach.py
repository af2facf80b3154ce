"""A store or a disk that is away for a while costs time, and no file of the collection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotate import AnnotateJob
from pipeline.attempts import Attempts
from pipeline.build import build, build_pixels
from pipeline.cluster import connect
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.decode import open_decoder
from pipeline.decode.errors import CannotOpen, TimedOut
from pipeline.decode.passes import Decoder
from pipeline.decode.scan import Scan, gather_scan
from pipeline.executor.inline import InlineExecutor
from pipeline.feed import decode_chunk, make_chunks
from pipeline.plan import PlannedSource, make_plan, units_of
from pipeline.select import read_selection
from pipeline.sources.listing import list_sources
from pipeline.sources.location import Member
from pipeline.sources.media import Unreachable, open_media
from pipeline.status import Status, Watch
from tests.conftest import moving_square, write_mp4
from tests.web import Web
from tokenizer.settings import UserError

EXECUTORS = ["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]


@pytest.fixture
def one_ray() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@contextmanager
def unmounted(folder: Path) -> Iterator[None]:
    folder.rename(folder.with_name("elsewhere"))
    yield
    folder.with_name("elsewhere").rename(folder)


def collection(tmp_path: Path) -> BuildConfig:
    """Three files on one disk and three on another, a unit each."""
    for number in range(6):
        disk = tmp_path / "disks" / "ab"[number % 2]
        write_mp4(disk / f"{number}.mp4", moving_square(30, number))
    return BuildConfig(
        sources=(str(tmp_path / "disks"),),
        out=str(tmp_path / "data"),
        executor="inline",
        num_cpus=2,
        annotate=AnnotateSettings(sources_per_unit=1),
        select=SelectSettings(drop={}, val_share=0.0),
        tokenize=TokenizeSettings(samples_per_shard=1),
    )


def first_film(tmp_path: Path) -> tuple[PlannedSource, AnnotateJob]:
    config = collection(tmp_path)
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources), store)
    return plan[0], AnnotateJob(config, store.root)


def committed(config: BuildConfig, phase: str) -> set[str]:
    return {unit for unit in Store(config.out).committed() if unit.startswith(phase)}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_units_of_a_disk_that_is_away_are_left_and_all_others_done(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_ray: ExitStack
) -> None:
    if executor == "ray":
        one_ray.enter_context(connect(None, 2))  # which all builds below use
    config = replace(collection(tmp_path), executor=executor)
    disk = tmp_path / "disks" / "b"

    def away_once_planned(*arguments: object) -> object:
        plan = make_plan(*arguments)  # type: ignore[arg-type]
        disk.rename(tmp_path / "elsewhere")
        return plan

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.build.make_plan", away_once_planned)
        with pytest.raises(UserError, match=r"out of reach: .*3 units with such files put off"):
            build(config, "annotate")
    assert len(committed(config, "annotate")) == 3
    assert Attempts(Store(config.out)).begun() == {}
    (tmp_path / "elsewhere").rename(disk)
    build(config, "select")
    rows = read_selection(Store(config.out)) or []
    assert {row.outcome for row in rows if row.kind == "video"} <= {"kept", "dropped:tail"}
    assert len({row.uri for row in rows if row.outcome == "kept"}) == 6

    whole = replace(config, out=str(tmp_path / "whole"), executor="inline")
    build(whole, "select")
    assert Store(whole.out).storage.read("selection.parquet") == Store(config.out).storage.read(
        "selection.parquet"
    )
    pixels = replace(config, out=f"{config.out}/pixels")
    with unmounted(disk), pytest.raises(UserError, match=r"3 units with such files put off"):
        build_pixels(config)
    assert len(committed(pixels, "tokenize")) == 3
    build_pixels(config)
    assert len(committed(pixels, "tokenize")) == 6
    build_pixels(whole)
    assert committed(pixels, "tokenize") == committed(
        replace(whole, out=f"{whole.out}/pixels"), "tokenize"
    )


def test_a_unit_that_was_put_off_is_done_when_its_store_is_back(tmp_path: Path, web: Web) -> None:
    for number in range(2):
        write_mp4(tmp_path / "web" / f"{number}.mp4", moving_square(30, number))
    config = BuildConfig(
        sources=(f"{web.url}/{{0,1}}.mp4",),
        out=str(tmp_path / "data"),
        annotate=AnnotateSettings(sources_per_unit=1),
    )
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources, config.limits), store)
    job = AnnotateJob(config, store.root)
    units = [job.unit(sources) for sources in units_of(plan)]
    web.failures["/0.mp4"] = [503] * 8
    watch = Watch(Status("annotate", 2, 0), store)
    done = list(InlineExecutor().annotate(job, units, watch))
    assert done == [units[1].id, units[0].id]
    assert watch.status.num_returned == 1
    assert {row.outcome for unit in units for row in job.rows(unit)} <= {"", "dropped:tail"}


@pytest.mark.parametrize("statuses", [[401] * 9, [403] * 9, [500] * 9, [503] * 9])
def test_a_store_that_refuses_or_fails_says_nothing_of_its_files(
    statuses: list[int], tmp_path: Path, web: Web
) -> None:
    (tmp_path / "web" / "a.mp4").write_bytes(b"a film")
    web.failures["/a.mp4"] = statuses
    config = BuildConfig(sources=("x",), out="y")
    with (
        pytest.raises(Unreachable, match=r"out of reach: .*a\.mp4"),
        open_media(f"{web.url}/a.mp4", config.limits, "0" * 64),
    ):
        pass


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda film: film.unlink(), CannotOpen),  # beside others
        (lambda film: [each.unlink() for each in film.parent.iterdir()], Unreachable),
        (lambda film: film.parent.rename(film.parent.with_name("away")), Unreachable),
    ],
)
def test_a_deleted_file_is_gone_but_an_empty_disk_is_away(
    spoil: Callable[[Path], object], kind: type, tmp_path: Path
) -> None:
    film = tmp_path / "disk" / "a.mp4"
    film.parent.mkdir()
    for path in (film, film.with_name("b.mp4")):
        path.write_bytes(b"a film")
    spoil(film)
    config = BuildConfig(sources=("x",), out="y")
    with pytest.raises(kind), open_media(str(film), config.limits, "0" * 64, stamp="1"):
        pass


def test_what_came_before_time_ran_out_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, job = first_film(tmp_path)
    whole = gather_scan(open_decoder(*job.recipe), source.location)
    late = replace(whole, frames=whole.frames[:9], pts=whole.pts[:9], error=TimedOut("too slow"))
    monkeypatch.setattr("pipeline.annotate.gather_scan", lambda *_: late)
    assert [row.outcome for row in job.scan(source)] == ["error:timeout"]


def test_a_disk_that_goes_away_while_a_film_is_decoded_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, job = first_film(tmp_path)
    disk = Path(source.location).parent

    def scan_of_a_lost_disk(*arguments: Any) -> Scan:
        disk.rename(tmp_path / "elsewhere")
        return gather_scan(*arguments)

    monkeypatch.setattr("pipeline.annotate.gather_scan", scan_of_a_lost_disk)
    with pytest.raises(Unreachable, match="out of reach"):
        job.scan(source)
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(disk)
    clip = next(row for row in job.scan(source) if not row.outcome)
    (chunk,) = make_chunks([clip], [clip.request()], {source.source_id: source}, job.recipe, 1)
    probe = Decoder.clips

    def clips_of_a_lost_disk(*arguments: Any) -> Iterator[Any]:
        disk.rename(tmp_path / "elsewhere")
        return probe(*arguments)

    monkeypatch.setattr(Decoder, "clips", clips_of_a_lost_disk)
    with pytest.raises(Unreachable, match="out of reach"):
        decode_chunk(chunk)


def test_a_tar_that_was_written_anew_is_another_file(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    tar.write_bytes(bytes(100))
    member = Member(str(tar), 50, 100, ".mp4").location
    config = BuildConfig(sources=("x",), out="y")
    with pytest.raises(CannotOpen, match="shorter"), open_media(member, config.limits, "0" * 64):
        pass
