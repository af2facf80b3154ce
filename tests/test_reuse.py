"""Reuse: what was made once is not made again, and what is copied is what would be made."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import annotate
from pipeline.annotate import AnnotateJob
from pipeline.build import build
from pipeline.clip import Clip, clips_from_parquet, failed_source
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.feed import Chunk, Decoded, decode_chunk
from pipeline.plan import PlannedSource
from pipeline.shards import open_dataset
from tokenizer.settings import UserError

NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def finished(
    write_film: Callable[[Path, int], Path],
    random_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuildConfig:
    """A finished dataset of a few films, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("reuse")
    for seed in range(NUM_VIDEOS):
        write_film(folder / "videos" / "films" / f"{seed}.mp4", seed)
        (folder / "videos" / "films" / f"{seed}.txt").write_text(f"film {seed}")
    config = BuildConfig(
        sources=(str(folder / "videos"),),
        out=str(folder / "data"),
        executor="inline",
        annotate=AnnotateSettings(sources_per_unit=3),
        select=SelectSettings(val_share=0.3, drop={"too_static": "motion < 20"}),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer), samples_per_shard=4, batch_size=4
        ),
    )
    build(config)
    return config


@pytest.fixture
def made(finished: BuildConfig, tmp_path: Path) -> BuildConfig:
    """A copy of the dataset beside a copy of its films, and its settings."""
    shutil.copytree(finished.sources[0], tmp_path / "videos")
    shutil.copytree(finished.out, tmp_path / "data")
    return replace(finished, sources=(str(tmp_path / "videos"),), out=str(tmp_path / "data"))


def commits(out: str, phase: str) -> dict[str, dict]:
    paths = (Path(out) / "_commits").glob(f"{phase}-*.json")
    return {path.stem: json.loads(path.read_text()) for path in paths}


def encoded_since(out: str, before: dict[str, dict]) -> int:
    now = commits(out, "tokenize")
    return sum(each["run"]["num_encoded"] for name, each in now.items() if name not in before)


def parts(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(out) / "parts").glob("*.tar")}


def manifest(out: str) -> dict[str, object]:
    return {row.clip_id: row for row in clips_from_parquet(Path(out) / "manifest.parquet")}


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("annotate.open_decoder", "executor.inline.decode_chunk"):
        monkeypatch.setattr(f"pipeline.{name}", lambda *_: pytest.fail("decoded"))


def test_a_new_caption_decodes_and_encodes_nothing(
    made: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = commits(made.out, "tokenize")
    caption = Path(made.sources[0]) / "films" / "2.txt"
    caption.write_text("a better caption")
    forbid_decoding(monkeypatch)
    build(made)
    assert encoded_since(made.out, before) == 0
    captions = {row.uri: row.caption for row in manifest(made.out).values()}
    assert captions["films/2.mp4"] == "a better caption"
    assert captions["films/3.mp4"] == "film 3"
    samples = open_dataset(made.out).samples("train")
    shown = {each["uri"]: each["caption"] for each in samples.metadata(range(len(samples)))}
    assert shown.get("films/2.mp4", "a better caption") == "a better caption"


def test_a_new_threshold_encodes_the_newly_kept_clips_only(made: BuildConfig) -> None:
    kept = {key for key, row in manifest(made.out).items() if row.outcome == "kept"}
    before = commits(made.out, "tokenize")
    looser = replace(made, select=replace(made.select, drop={"too_static": "motion < 1"}))
    build(looser)
    now = {key for key, row in manifest(made.out).items() if row.outcome == "kept"}
    assert kept < now
    assert encoded_since(made.out, before) == len(now - kept)


@pytest.mark.slow
def test_what_was_copied_is_what_a_build_from_scratch_makes(
    made: BuildConfig, tmp_path: Path
) -> None:
    looser = replace(made, select=replace(made.select, drop={"too_static": "motion < 1"}))
    build(looser)
    fresh = replace(looser, out=str(tmp_path / "fresh"))
    build(fresh)
    for name in ("manifest.parquet", "shards.json", "index.bin", "statistics.json"):
        assert (Path(made.out) / name).read_bytes() == (Path(fresh.out) / name).read_bytes()
    assert parts(fresh.out).items() <= parts(made.out).items()


@pytest.mark.slow
def test_added_videos_leave_the_old_shards_as_they_are(
    made: BuildConfig, write_film: Callable[[Path, int], Path]
) -> None:
    before = parts(made.out)
    units = commits(made.out, "tokenize")
    for seed in range(10):
        write_film(Path(made.sources[0]) / "films" / f"added-{seed}.mp4", 100 + seed)
    build(made)
    declared = {
        Path(shard["path"]).name
        for shard in json.loads((Path(made.out) / "shards.json").read_text())["shards"]
    }
    assert before.items() <= parts(made.out).items()
    assert set(before) < declared
    added = [row for row in manifest(made.out).values() if "added" in row.uri]
    assert encoded_since(made.out, units) == sum(row.outcome == "kept" for row in added)


def test_another_dataset_lends_its_scans_and_codes(
    made: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(made, out=str(tmp_path / "other"), reuse=(made.out,))
    forbid_decoding(monkeypatch)
    build(other)
    assert encoded_since(other.out, {}) == 0
    assert parts(other.out) == parts(made.out)


def test_a_dataset_that_lends_nothing_says_why(
    made: BuildConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenize = replace(made.tokenize, batch_size=8)
    build(replace(made, out=str(tmp_path / "second"), reuse=(made.out,), tokenize=tokenize))
    assert "codes were made with batch_size 4 (here 8), and would differ" in capfd.readouterr().err


def test_a_damaged_shard_is_never_copied(made: BuildConfig, tmp_path: Path) -> None:
    for path in (Path(made.out) / "parts").glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[512 + 140] ^= 1
        path.write_bytes(bytes(data))
    other = replace(made, out=str(tmp_path / "other"), reuse=(made.out,))
    with pytest.raises(UserError, match=r"at byte 512: damaged.*verify .* --repair"):
        build(other)
    assert not commits(other.out, "tokenize")


def test_a_folder_without_commits_cannot_be_reused(made: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = replace(made, out=str(tmp_path / "other"), reuse=(str(tmp_path / "empty"),))
    with pytest.raises(UserError, match="has no commits"):
        build(other)


def test_files_that_moved_are_not_scanned_again(
    made: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = commits(made.out, "tokenize")
    shutil.move(str(Path(made.sources[0]) / "films"), str(Path(made.sources[0]) / "movies"))
    forbid_decoding(monkeypatch)
    build(made)
    assert {row.uri.split("/")[0] for row in manifest(made.out).values()} == {"movies"}
    assert encoded_since(made.out, before) == 0


def test_touched_and_moved_files_leave_every_shard_as_it_is(
    made: BuildConfig, write_film: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    before = parts(made.out)
    for path in (Path(made.sources[0]) / "films").iterdir():
        path.touch()
    build(made)
    assert parts(made.out) == before
    write_film(Path(made.sources[0]) / "films" / "added.mp4", 77)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(made.sources[0], elsewhere)
    build(replace(made, sources=(str(elsewhere),)))
    assert before.items() <= parts(made.out).items()
    assert {row.shard for row in manifest(made.out).values() if "added" not in row.uri} <= {
        "",
        *(f"parts/{name}" for name in before),
    }


def test_a_lost_part_and_a_damaged_commit_are_one_line_each(made: BuildConfig) -> None:
    part = next((Path(made.out) / "parts").glob("*.tar"))
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(UserError, match=r"1 committed files are gone.*verify .* --repair"):
        build(made)
    part.write_bytes(content)
    commit = next((Path(made.out) / "_commits").glob("tokenize-*"))
    commit.write_text(re.sub(r'"n_kept":\d', '"n_kept":9', commit.read_text()))
    with pytest.raises(UserError, match=r"damaged; take it out by `tessera verify"):
        build(made)


def test_a_damaged_plan_is_one_line(made: BuildConfig) -> None:
    (Path(made.out) / "plan.parquet").write_bytes(b"no parquet" * 20)
    with pytest.raises(UserError, match=r"plan.parquet: damaged .*delete it"):
        build(made)


def test_an_erased_source_leaves_the_shards_without_it_as_they_are(made: BuildConfig) -> None:
    from pipeline.cli import main

    before = parts(made.out)
    rows = manifest(made.out).values()
    gone = next(row for row in rows if row.outcome == "kept" and row.row == 0)
    assert main(["remove", made.out, "--source", gone.source_id]) == 0
    assert main(["gc", made.out, "--rewrite"]) == 0
    holding = {row.shard for row in rows if row.source_id == gone.source_id and row.shard}
    after = parts(made.out)
    assert {name for name in before if f"parts/{name}" not in holding} == set(before) & set(after)
    (Path(made.sources[0]) / gone.uri).unlink()
    build(made)
    assert parts(made.out) == after


@pytest.mark.parametrize("section", ["annotate", "limits"])
def test_more_time_scans_the_files_again_that_had_too_little_and_no_other(
    section: str, made: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(AnnotateJob):
        def scan(self, source: PlannedSource) -> list[Clip]:
            if source.uri == "films/2.mp4":
                return [failed_source(source.source_id, source.uri, "error:timeout")]
            return super().scan(source)

    first = replace(made, out=str(tmp_path / "again"))
    monkeypatch.setattr("pipeline.build.AnnotateJob", Hanging)
    build(first, "annotate")
    monkeypatch.undo()
    scanned = []
    decode = annotate.open_decoder
    monkeypatch.setattr(
        annotate, "open_decoder", lambda *recipe: scanned.append(recipe) or decode(*recipe)
    )
    build(first, "annotate")
    assert not scanned
    more = getattr(first, section)
    more = replace(more, timeout_seconds=more.timeout_seconds + 1)
    build(replace(first, **{section: more}), "select")
    assert len(scanned) == 1
    build(made, "select")
    now, whole = (
        clips_from_parquet(Path(each) / "selection.parquet") for each in (first.out, made.out)
    )
    assert now == whole


@pytest.mark.parametrize(("error", "is_final"), [("corrupt", True), ("timeout", False)])
def test_a_clip_that_time_ran_out_for_is_tried_again_in_new_shards(
    error: str, is_final: bool, made: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(chunk: Chunk) -> Decoded:
        if chunk.source_id == source_id:
            return Decoded((), error, os.getpid())
        return decode_chunk(chunk)

    source_id = next(row.source_id for row in manifest(made.out).values() if row.shard)
    first = replace(made, out=str(tmp_path / "first"))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.executor.inline.decode_chunk", failing)
        build(first)
    failed = {
        row.clip_id for row in manifest(first.out).values() if row.outcome == f"error:{error}"
    }
    assert failed
    larger = replace(first.tokenize, samples_per_shard=first.tokenize.samples_per_shard - 1)
    build(replace(first, tokenize=larger))
    outcomes = {row.outcome for key, row in manifest(first.out).items() if key in failed}
    assert outcomes == ({f"error:{error}"} if is_final else {"kept"})
