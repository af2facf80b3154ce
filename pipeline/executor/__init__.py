"""Where work runs. Both executors run the same functions and so give the same bytes.

inline   a plain loop in this process, for tests and debugging
ray      tasks and actors in processes that may die, on one machine or many
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.cluster import prepare_environment
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit, DecodedClips, Finish


class ClipJob(Protocol):
    """Work of one model on units of decoded clips: tokenizing, captioning."""

    config: BuildConfig
    store: Store

    def load_model(self) -> Any: ...

    def process(self, unit: ClipUnit, decoded: DecodedClips, model: Any) -> Finish: ...


class Executor(AbstractContextManager, Protocol):
    """Runs units that are not committed yet; yields the id of each as it is committed.

    The watch is told of each unit that a worker begins or gives back. UserError when all is done
    but units with files that are out of reach.
    """

    def annotate(
        self, job: AnnotateJob, units: Sequence[AnnotateUnit], watch: Watch
    ) -> Iterator[str]: ...

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit], watch: Watch) -> Iterator[str]: ...


def make_executor(config: BuildConfig) -> Executor:
    """The executor that the config names; nothing is started before it is entered."""
    if config.executor == "inline":
        from pipeline.executor.inline import InlineExecutor

        return InlineExecutor()
    if config.ray_address or os.environ.get("RAY_ADDRESS"):
        prepare_environment()  # Ray reads its token settings when it is imported
    from pipeline.executor.ray import RayExecutor

    return RayExecutor(config.ray_address, config.num_cpus)
