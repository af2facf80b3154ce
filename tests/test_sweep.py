"""Sweep: what no commit names goes, what a build may use stays, and stopping it changes nothing."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.cli import main
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.shards import open_dataset
from pipeline.storage import LocalStorage
from pipeline.upkeep.sweep import sweep
from pipeline.upkeep.verify import verify
from tokenizer.settings import UserError

OLD = 10_000.0


@pytest.fixture(scope="module")
def config(
    write_film: Callable[[Path, int], Path],
    random_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuildConfig:
    """The settings of a finished dataset of a few films."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in range(6):
        write_film(folder / "videos" / "films" / f"{seed}.mp4", seed)
    settings = BuildConfig(
        sources=(str(folder / "videos"),),
        out=str(folder / "data"),
        executor="inline",
        annotate=AnnotateSettings(sources_per_unit=2),
        select=SelectSettings(val_share=0.3, drop={"too_static": "motion < 20"}),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer), samples_per_shard=2, batch_size=2
        ),
    )
    build(settings)
    return settings


@pytest.fixture
def data(config: BuildConfig, tmp_path: Path) -> Path:
    shutil.copytree(config.out, tmp_path / "data")
    return tmp_path / "data"


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def leave(root: Path, name: str, age_seconds: float = OLD) -> Path:
    """A file that a build which died left behind some time ago."""
    path = root / name
    path.write_bytes(b"left over")
    os.utime(path, (time.time() - age_seconds,) * 2)
    return path


def litter(root: Path) -> None:
    unit = sorted(path.stem for path in (root / "_commits").glob("annotate-*"))[0]
    leave(root, "tmp/train-t9_h64_w64-0123456789ab.12ab")
    leave(root, "parts/train-t9_h64_w64-0123456789ab-0123456789ab.tar")
    leave(root, "parts/train-t9_h64_w64-0123456789ab-0123456789ab.idx")
    leave(root, f"_attempts/{unit}.0")


def test_what_builds_left_behind_goes_and_what_is_committed_stays(data: Path) -> None:
    sound = contents(data)
    litter(data)
    swept = sweep(data)
    assert {kind: found.num_files for kind, found in swept.items()} == {
        "temporary files": 1,
        "uncommitted parts": 2,
        "attempt markers": 1,
    }
    assert swept["uncommitted parts"].size_bytes == 18
    assert contents(data) == sound
    assert sweep(data) == {}


def test_a_dry_run_says_the_same_and_deletes_nothing(data: Path) -> None:
    litter(data)
    before = contents(data)
    said = sweep(data, dry_run=True)
    assert contents(data) == before
    assert said == sweep(data)


def test_what_is_young_may_belong_to_a_build_that_runs(data: Path) -> None:
    left = leave(data, "tmp/train-x.1", age_seconds=100)
    assert sweep(data) == {}
    assert sweep(data, min_age_seconds=99).keys() == {"temporary files"}
    assert not left.exists()


def test_markers_of_units_that_are_not_committed_are_kept(data: Path) -> None:
    marker = leave(data, f"_attempts/annotate-{'0' * 24}.1")
    assert sweep(data) == {}
    assert marker.exists()


def test_foreign_files_are_not_touched(data: Path) -> None:
    notes = leave(data, "parts/notes.txt")
    assert sweep(data, min_age_seconds=0, history=True) == {}
    assert notes.exists()


def test_a_part_that_is_published_again_meanwhile_stays(data: Path) -> None:
    name = "parts/train-t9_h64_w64-0123456789ab-0123456789ab.tar"
    path = leave(data, name)
    storage = LocalStorage(data)
    now = time.time()
    path.unlink()
    path.write_bytes(b"published just now")
    assert not storage.delete_older(name, 3600, now)
    assert path.read_bytes() == b"published just now"
    assert list((data / "tmp").iterdir()) == []
    assert not storage.delete_older("parts/none.tar", 3600, now)


def test_a_sweep_that_is_stopped_at_each_file_ends_the_same(
    config: BuildConfig, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(replace(config, out=str(data), select=replace(config.select, drop={})))
    litter(data)
    shutil.copytree(data, data.parent / "undisturbed")
    for path in (data.parent / "undisturbed").rglob("*"):
        if path.is_file():
            shutil.copystat(data / path.relative_to(data.parent / "undisturbed"), path)
    sweep(data.parent / "undisturbed", min_age_seconds=0, history=True)
    delete, allowed = LocalStorage.delete_older, [0]

    def delete_some(self: LocalStorage, name: str, age: float, now: float) -> bool:
        if not allowed[0]:
            raise KeyboardInterrupt
        allowed[0] -= 1
        return delete(self, name, age, now)

    monkeypatch.setattr(LocalStorage, "delete_older", delete_some)
    for attempt in range(100):
        allowed[0] = 1 + attempt % 2
        try:
            sweep(data, min_age_seconds=0, history=True)
            break
        except KeyboardInterrupt:
            assert not [p for p in verify(data).problems if p.kind != "foreign"]
    assert attempt > 3
    swept, expected = contents(data), contents(data.parent / "undisturbed")
    assert swept == expected


def test_a_sweep_beside_a_running_build_loses_nothing(config: BuildConfig, tmp_path: Path) -> None:
    running = replace(config, out=str(tmp_path / "data"))
    Store(running.out).prepare()
    done = threading.Event()

    def keep_sweeping() -> None:
        while not done.is_set():
            if Store(running.out).committed():
                sweep(running.out, min_age_seconds=60)

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        build(running)
    finally:
        done.set()
        sweeper.join()
    assert verify(running.out).problems == ()
    for name in ("manifest.parquet", "shards.json", "index.bin"):
        assert (tmp_path / "data" / name).read_bytes() == (Path(config.out) / name).read_bytes()


def test_history_deletes_what_the_dataset_does_not_use(config: BuildConfig, data: Path) -> None:
    before = contents(data)
    changed = replace(config, out=str(data), select=replace(config.select, drop={}))
    build(changed)
    assert sweep(data, min_age_seconds=0) == {}
    swept = sweep(data, min_age_seconds=0, history=True)
    assert swept.keys() == {"superseded units"}
    assert verify(data).problems == ()
    assert len(open_dataset(data).samples("train")) > 0
    fresh = replace(changed, out=str(data.parent / "fresh"))
    build(fresh)
    for folder in ("parts", "_commits"):
        kept = {path.name for path in (data / folder).iterdir()}
        assert kept == {path.name for path in (data.parent / "fresh" / folder).iterdir()}
    assert any(name.startswith("parts/") and name not in contents(data) for name in before)


def test_history_keeps_everything_of_a_dataset_that_changed_nothing(data: Path) -> None:
    assert sweep(data, min_age_seconds=0, history=True) == {}


def test_history_of_an_unfinished_dataset_is_refused(data: Path) -> None:
    (data / "_SUCCESS").unlink()
    with pytest.raises(UserError, match="not finished"):
        sweep(data, history=True)


def test_beside_a_damaged_commit_nothing_is_deleted(data: Path) -> None:
    next((data / "_commits").glob("tokenize-*")).write_text("{")
    litter(data)
    before = contents(data)
    with pytest.raises(UserError, match="nothing was deleted"):
        sweep(data, min_age_seconds=0)
    assert contents(data) == before


def test_a_dataset_in_an_object_store_is_swept(config: BuildConfig, tmp_path: Path) -> None:
    import fsspec

    files, root = fsspec.filesystem("memory"), f"/{tmp_path.name}-sweep"
    files.put(f"{config.out}/", root, recursive=True)
    before = set(files.find(root))
    files.pipe_file(f"{root}/tmp/check-1", b"x")
    files.pipe_file(f"{root}/parts/a-0123456789ab.tar", b"x")
    assert sweep(f"memory://{root}") == {}
    assert len(sweep(f"memory://{root}", min_age_seconds=0)) == 2
    assert set(files.find(root)) == before


def test_the_command_says_what_it_freed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    litter(data)
    assert main(["gc", str(data), "--dry-run"]) == 0
    assert "would go: 1 temporary files, 9 bytes" in capsys.readouterr().out
    assert main(["gc", str(data)]) == 0
    assert "deleted: 2 uncommitted parts, 18 bytes" in capsys.readouterr().out
    assert main(["gc", str(data)]) == 0
    assert "deleted: nothing" in capsys.readouterr().out
    assert main(["gc", str(data / "parts")]) == 2
