"""Chaos: whatever dies, and whenever, the dataset ends in the bytes of an undisturbed build."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.build import build
from pipeline.clip import clips_from_parquet
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from tests.conftest import moving_square, write_mp4
from tokenizer.settings import read_settings, save_settings

OURS = re.compile(r"ray::_|.*\0-m\0pipeline\.isolation\0")
DERIVED = ("manifest.parquet", "selection.parquet", "shards.json", "index.bin", "statistics.json")


def write_corpus(folder: Path, num_films: int) -> Path:
    """Films of three shots, and a broken one."""
    for number in range(num_films):
        shots = [moving_square(30, 10 * number + shot) for shot in range(3)]
        write_mp4(folder / f"label{number % 3}" / f"{number:03d}.mp4", np.concatenate(shots))
    (folder / "label0" / "broken.mp4").write_bytes(b"no film" * 100)
    return folder


def settings_of(videos: Path, tokenizer: Path, out: Path) -> BuildConfig:
    return BuildConfig(
        sources=(str(videos),),
        out=str(out),
        executor="inline",
        num_cpus=2,
        annotate=AnnotateSettings(sources_per_unit=2),
        select=SelectSettings(val_share=0.3),
        tokenize=TokenizeSettings(
            tokenizer=str(tokenizer), samples_per_shard=4, batch_size=4, clips_per_decode=2
        ),
    )


def hashes(root: Path) -> dict[str, str]:
    """What a reader may open, and what the manifest names, by content."""
    declared = json.loads((root / "shards.json").read_text())["shards"]
    files = [*DERIVED, *(shard["path"] for shard in declared)]
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in files}


def results(root: Path) -> dict[str, Any]:
    records = (json.loads(path.read_text()) for path in (root / "_commits").glob("*.json"))
    return {record["unit"]: record["result"] for record in records}


def check_same(root: Path, undisturbed: Path) -> None:
    """Same bytes, same commits, nothing lost or twice, and no part that no commit names."""
    assert hashes(root) == hashes(undisturbed)
    assert results(root) == results(undisturbed)
    rows = clips_from_parquet(root / "manifest.parquet")
    assert len({row.clip_id for row in rows}) == len(rows)
    kept = [(row.shard, row.row) for row in rows if row.outcome == "kept"]
    assert len(set(kept)) == len(kept)


@pytest.fixture(scope="module")
def undisturbed(random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("undisturbed"), 14, random_tokenizer)


@pytest.fixture(scope="module")
def small(random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of fewer films, for what is built many times."""
    return built(tmp_path_factory.mktemp("small"), 5, random_tokenizer)


def built(folder: Path, num_films: int, tokenizer: Path) -> Path:
    videos = write_corpus(folder / "videos", num_films)
    build(settings_of(videos, tokenizer, folder / "data"))
    return folder / "data"


def again(undisturbed: Path, out: Path) -> BuildConfig:
    return replace(read_settings(BuildConfig, undisturbed / "config.yaml"), out=str(out))


class SmallDisk:
    """Files of the build's own modules, on a disk that is full after `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self.left = capacity

    def open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open(path, mode, *args, **kwargs)  # noqa: SIM115
        return LimitedFile(file, self) if "w" in mode else file


class LimitedFile:
    def __init__(self, file: Any, disk: SmallDisk) -> None:
        self._file = file
        self._disk = disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        fits = min(len(view), self._disk.left)
        self._disk.left -= fits
        self._file.write(view[:fits])
        if fits < len(view):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        return fits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> LimitedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def bytes_written_by_a_build(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    disk = SmallDisk(1 << 40)
    with monkeypatch.context() as patch:
        for module in ("commit", "storage"):
            patch.setattr(f"pipeline.{module}.open", disk.open, raising=False)
        build(config)
    return (1 << 40) - disk.left


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_byte_leaves_a_build_that_can_go_on(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = bytes_written_by_a_build(again(small, tmp_path / "whole"), monkeypatch)
    generator = random.Random(0)
    for number in range(20):
        config = again(small, tmp_path / str(number))
        position = generator.randrange(total * number // 20, total * (number + 1) // 20)
        with monkeypatch.context() as patch:
            disk = SmallDisk(position)
            for module in ("commit", "storage"):
                patch.setattr(f"pipeline.{module}.open", disk.open, raising=False)
            with pytest.raises(OSError, match="No space left"):
                build(config)
        assert not (tmp_path / str(number) / "_SUCCESS").exists()
        build(config)
        check_same(tmp_path / str(number), small)
        assert list((tmp_path / str(number) / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_says_how_to_go_on(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipeline.cli import main

    save_settings(again(undisturbed, tmp_path / "data"), tmp_path / "build.yaml")
    disk = SmallDisk(20_000)
    for module in ("commit", "storage"):
        monkeypatch.setattr(f"pipeline.{module}.open", disk.open, raising=False)
    assert main(["build", str(tmp_path / "build.yaml")]) == 2
    assert "No space left on device; free some space and run the same" in capsys.readouterr().err


@pytest.mark.slow
def test_a_zombie_that_publishes_late_changes_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.tokenize import TokenizeJob

    config = again(undisturbed, tmp_path / "data")
    late: list[Callable[[], None]] = []
    process = TokenizeJob.process

    def stop_before_publishing(self: TokenizeJob, *args: Any) -> Callable[[], None]:
        late.append(process(self, *args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TokenizeJob, "process", stop_before_publishing)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    build(config)
    parts = sorted((tmp_path / "data" / "parts").iterdir())
    late[0]()
    check_same(tmp_path / "data", undisturbed)
    assert sorted((tmp_path / "data" / "parts").iterdir()) == parts
    assert list((tmp_path / "data" / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_zombie_with_other_bytes_takes_its_part_away(undisturbed: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from pipeline.commit import Store

    build(again(undisturbed, tmp_path / "data"))
    store = Store(tmp_path / "data")
    unit = next(unit for unit in sorted(store.committed()) if unit.startswith("tokenize"))
    part = store.write_part("train-zombie", ".tar", lambda file: file.write(b"other bits"))
    sidecar = store.write_beside(part, ".idx", b"other index")
    assert not store.commit(unit, {"parts": [asdict(part), asdict(sidecar)]}, {})
    assert not [name for name in store.storage.names("parts") if "zombie" in name]
    check_same(tmp_path / "data", undisturbed)


@pytest.mark.slow
def test_two_builds_that_race_on_one_output_make_one_dataset(
    undisturbed: Path, tmp_path: Path
) -> None:
    save_settings(again(undisturbed, tmp_path / "data"), tmp_path / "build.yaml")
    command = [sys.executable, "-m", "pipeline", "build", str(tmp_path / "build.yaml")]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for racer in racers:
        _, errors = racer.communicate()
        assert racer.returncode == 0, errors.decode()
    check_same(tmp_path / "data", undisturbed)
    assert list((tmp_path / "data" / "tmp").iterdir()) == []
    named = {
        part["path"] for result in results(tmp_path / "data").values() for part in result["parts"]
    }
    there = {f"parts/{path.name}" for path in (tmp_path / "data" / "parts").iterdir()}
    assert there == named


class Assassin:
    """Kills processes of a build with SIGKILL: after some progress, one more, chosen at random."""

    def __init__(self, root: Path, generator: random.Random, driver_deaths: list[str]) -> None:
        self.victims: list[str] = []
        self._root = root
        self._random = generator
        self._driver_deaths = driver_deaths
        self._killed_at = 0

    def watch(self, driver: subprocess.Popen) -> int:
        """Until the driver ends, by itself or killed; its return code."""
        while driver.poll() is None:
            time.sleep(self._random.uniform(0.02, 0.1))
            if self._driver_deaths and self._committed(self._driver_deaths[0]) >= 2:
                self._driver_deaths.pop(0)
                self._kill(driver.pid, "driver")
                return driver.wait()
            committed = self._committed("annotate") + self._committed("tokenize")
            if committed > self._killed_at:
                workers = sorted(self._workers(driver.pid))
                if workers:
                    self._kill(*self._random.choice(workers))
                    self._killed_at = committed
        return driver.returncode

    def _committed(self, phase: str) -> int:
        return len(list((self._root / "_commits").glob(f"{phase}-*.json")))

    def _kill(self, pid: int, name: str) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
            self.victims.append(name)
        except ProcessLookupError:
            pass

    def _workers(self, driver: int) -> Iterator[tuple[int, str]]:
        """The processes of our tasks and actors below the driver."""
        parents, names = {}, {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    status = (path / "stat").read_text()
                    names[int(path.name)] = (path / "cmdline").read_bytes().decode()
                except (OSError, UnicodeDecodeError):
                    continue
                parents[int(path.name)] = int(status.rpartition(")")[2].split()[1])
        for pid, name in names.items():
            ancestor = parents[pid]
            while ancestor in parents and ancestor != driver:
                ancestor = parents[ancestor]
            if ancestor == driver and OURS.match(name):  # not Ray's own agents
                yield pid, name.split("\0")[0]


def build_under_fire(config: BuildConfig, folder: Path, seed: int) -> list[str]:
    """Runs the build on Ray until it succeeds, killing meanwhile; what was killed."""
    save_settings(replace(config, executor="ray"), folder / "build.yaml")
    command = [sys.executable, "-m", "pipeline", "build", str(folder / "build.yaml")]
    assassin = Assassin(Path(config.out), random.Random(seed), ["annotate", "tokenize"])
    for _ in range(20):
        with open(folder / "log", "ab") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log)
            if assassin.watch(driver) == 0:
                return assassin.victims
    raise AssertionError((folder / "log").read_text()[-4000:])


@pytest.mark.ray
@pytest.mark.slow
def test_a_build_whose_workers_encoders_and_driver_are_killed_ends_in_the_same_bytes(
    undisturbed: Path, tmp_path: Path
) -> None:
    victims = build_under_fire(again(undisturbed, tmp_path / "data"), tmp_path, 0)
    check_same(tmp_path / "data", undisturbed)
    assert victims.count("driver") == 2
    assert len(victims) >= 4, victims


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(int(os.environ.get("TESSERA_CHAOS_ROUNDS", "8"))))
def test_long_chaos(
    seed: int, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(f"chaos{seed}")
    videos = write_corpus(folder / "videos", 60)
    build(settings_of(videos, random_tokenizer, folder / "undisturbed"))
    victims = build_under_fire(settings_of(videos, random_tokenizer, folder / "data"), folder, seed)
    check_same(folder / "data", folder / "undisturbed")
    assert any("_ModelWorker" in name for name in victims), victims
    print(f"seed {seed}: killed {len(victims)}: {', '.join(victims)}")
