"""On Ray, a file that kills or hangs its process is named, and everything else is kept."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.annotate import AnnotateJob
from pipeline.clip import Clip
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig
from pipeline.plan import PlannedSource, make_plan, units_of
from pipeline.sources import list_sources


class HostileJob(AnnotateJob):
    """Annotates, but two files take their process with them."""

    def scan(self, source: PlannedSource) -> list[Clip]:
        if source.uri == "crashes.mp4":
            os._exit(139)
        if source.uri == "hangs.mp4":
            time.sleep(3600)
        return super().scan(source)


@pytest.mark.ray
@pytest.mark.slow
def test_a_file_that_takes_its_process_along_is_an_error_and_the_rest_is_kept(
    write_film: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    from ray import cloudpickle

    from pipeline.executor.ray import RayExecutor

    names = ["crashes.mp4", "fine.mp4", "good.mp4", "hangs.mp4"]
    for seed, name in enumerate(names):
        write_film(tmp_path / "videos" / name, seed)
    config = BuildConfig(
        sources=(str(tmp_path / "videos"),),
        out=str(tmp_path / "data"),
        annotate=AnnotateSettings(sources_per_unit=2, timeout_seconds=20),
    )
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources), store)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        job = HostileJob(config, store.root)
        units = [job.unit(sources) for sources in units_of(plan)]
        with RayExecutor(None, 2) as executor:
            done = list(executor.annotate(job, units))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert sorted(done) == sorted(unit.id for unit in units)
    outcomes = {row.uri: row.outcome for unit in units for row in job.rows(unit)}
    assert outcomes["crashes.mp4"] == "error:crashed"
    assert outcomes["hangs.mp4"] == "error:timeout"
    kept = {row.uri for unit in units for row in job.rows(unit) if row.outcome == ""}
    assert kept == {"fine.mp4", "good.mp4"}
