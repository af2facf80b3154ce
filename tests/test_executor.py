"""On Ray, what kills or hangs its process is named and left out; everything else is made once."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipeline.annotate import AnnotateJob
from pipeline.attempts import Attempts
from pipeline.clip import Clip
from pipeline.cluster import connect
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.encode import EncoderRecipe
from pipeline.plan import PlannedSource, make_plan, units_of
from pipeline.select import select_clips
from pipeline.shards.format import Bucket, TokenSet
from pipeline.sources.listing import list_sources
from pipeline.status import Status, Watch
from pipeline.tokenize import TokenizeJob
from tokenizer.scales import Schedule, single_grid

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BATCH_SECONDS = 0.4


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """It takes seconds to start, so all tests here use the same."""
    with connect(None, 2):
        yield


class HostileJob(AnnotateJob):
    """Annotates, but some files take their process with them."""

    def scan(self, source: PlannedSource) -> list[Clip]:
        if source.uri == "crashes.mp4":
            os._exit(139)
        if source.uri == "hangs.mp4":
            time.sleep(3600)
        if source.uri == "eats.mp4":
            if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
            np.ones(1 << 30)
        if source.uri == "unlucky.mp4":
            with open(f"{source.location}.log", "a") as log:
                log.write("x")
            if os.path.getsize(f"{source.location}.log") <= 5:  # seven in a row are believed
                os.kill(os.getpid(), signal.SIGKILL)
        return super().scan(source)


class WaitingEncoder:
    """A stand-in for an encoder on another device: each batch takes 400 ms and no processor."""

    token_set = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=256)
    batch_size = 4

    def __init__(self, log: str) -> None:
        self._log = log
        self._say(f"loaded {os.getpid()}")

    def schedule(self, bucket: Bucket) -> Schedule:
        return single_grid(bucket.num_frames, 1, 1)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        time.sleep(BATCH_SECONDS)
        self._say(f"encoded {len(frames)}")
        return frames.mean(axis=(2, 3, 4)).astype(np.uint16)

    def _say(self, line: str) -> None:
        with open(self._log, "a") as file:
            file.write(line + "\n")


class WaitingRecipe(EncoderRecipe):
    def load(self) -> WaitingEncoder:  # type: ignore[override]
        assert self.directory is not None
        return WaitingEncoder(self.directory)


def a_watch(store: Store) -> Watch:
    return Watch(Status("phase", 0, 0), store)


def deaths_of(store: Store, unit_id: str) -> Iterator[tuple[str, str]]:
    yield from store.read(unit_id)["run"].get("deaths", {}).items()


@contextmanager
def importable_by_workers() -> Iterator[None]:
    """Classes of this module travel to Ray's workers by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_what_kills_or_hangs_its_process_is_named_and_the_rest_is_kept(
    write_film: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    from pipeline.executor.ray import RayExecutor

    names = ["crashes.mp4", "eats.mp4", "fine.mp4", "good.mp4", "hangs.mp4", "unlucky.mp4"]
    for seed, name in enumerate(names):
        write_film(tmp_path / "videos" / name, seed)
    config = BuildConfig(
        sources=(str(tmp_path / "videos"),),
        out=str(tmp_path / "data"),
        annotate=AnnotateSettings(sources_per_unit=2, timeout_seconds=6, memory_bytes=1 << 30),
    )
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources), store)
    with importable_by_workers():
        job = HostileJob(config, store.root)
        units = [job.unit(sources) for sources in units_of(plan)]
        with RayExecutor(None, 2) as executor:
            done = list(executor.annotate(job, units, a_watch(store)))
    assert sorted(done) == sorted(unit.id for unit in units)
    outcomes = {row.uri: row.outcome for unit in units for row in job.rows(unit)}
    assert outcomes.pop("crashes.mp4") == "error:crashed"
    assert outcomes.pop("eats.mp4") == "error:out_of_memory"
    assert outcomes.pop("hangs.mp4") == "error:timeout"
    assert set(outcomes) == {"fine.mp4", "good.mp4", "unlucky.mp4"}
    deaths = {uri: why for unit in units for uri, why in deaths_of(store, unit.id)}
    assert deaths["crashes.mp4"] == "exit code 139"
    assert set(deaths) == {"crashes.mp4", "eats.mp4", "hangs.mp4"}
    assert Attempts(store).begun() == {}


@pytest.fixture
def ten_units(
    write_film: Callable[[Path, int], Path], tmp_path: Path
) -> tuple[TokenizeJob, list, Path]:
    """A tokenize job over films of one clip each: 10 units of 8 clips, 2 batches a unit."""
    from pipeline.executor.inline import InlineExecutor

    for seed in range(80):
        write_film(tmp_path / "videos" / f"{seed:03d}.mp4", seed)
    config = BuildConfig(
        sources=(str(tmp_path / "videos"),),
        out=str(tmp_path / "data"),
        select=SelectSettings(drop={}, val_share=0.0),
        tokenize=TokenizeSettings(samples_per_shard=8, batch_size=4),
    )
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources), store)
    annotating = AnnotateJob(config, store.root)
    annotate_units = [annotating.unit(sources) for sources in units_of(plan)]
    list(InlineExecutor().annotate(annotating, annotate_units, a_watch(store)))
    clips = [clip for unit in annotate_units for clip in annotating.rows(unit)]
    log = tmp_path / "log"
    recipe = WaitingRecipe("waiting", str(log), config.tokenize, "waiting")
    job = TokenizeJob(config, store.root, recipe)
    units = job.fed(job.units(select_clips(clips, config.select), plan), plan, {}, {})
    assert len(units) == 10
    return job, units, log


def test_the_encoder_stays_busy_across_unit_borders(
    ten_units: tuple[TokenizeJob, list, Path],
) -> None:
    from pipeline.executor.ray import RayExecutor

    job, units, _ = ten_units
    with importable_by_workers(), RayExecutor(None, 2) as executor:
        assert len(list(executor.run_clips(job, units, a_watch(job.store)))) == 10
    runs = [job.store.read(unit.id)["run"] for unit in units]
    working = sum(run["encode_seconds"] for run in runs)
    first = min(run["encode_span"][0] for run in runs)
    last = max(run["encode_span"][1] for run in runs)
    assert working >= 20 * BATCH_SECONDS
    assert working / (last - first) >= 0.95


def test_an_encoder_that_is_killed_costs_its_open_unit_and_one_restart(
    ten_units: tuple[TokenizeJob, list, Path],
) -> None:
    from pipeline.executor.ray import RayExecutor

    job, units, log = ten_units

    def kill_in_the_middle() -> None:
        while not log.exists() or log.read_text().count("encoded") < 7:
            time.sleep(0.02)
        os.kill(int(log.read_text().split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    with importable_by_workers(), RayExecutor(None, 2) as executor:
        killer.start()
        done = list(executor.run_clips(job, units, a_watch(job.store)))
    killer.join()
    lines = log.read_text().splitlines()
    assert sorted(done) == sorted(unit.id for unit in units)
    assert sum(line.startswith("loaded") for line in lines) == 2
    assert 20 <= sum(line.startswith("encoded") for line in lines) <= 22
    results = [job.store.read(unit.id)["result"] for unit in units]
    assert sum(result["n_kept"] for result in results) == sum(len(unit.clips) for unit in units)
