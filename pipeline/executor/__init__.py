"""Where work runs. Both executors run the same functions and so give the same bytes.

inline   a plain loop in this process, for tests and debugging
ray      tasks and actors in processes that may die, on one machine or many
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.cluster import prepare_environment
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.quantities import counted
from pipeline.sources.media import Unreachable
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit, DecodedClips, Finish
from tokenizer.settings import UserError


class ClipJob(Protocol):
    """Work of one model on units of decoded clips: tokenizing, captioning."""

    config: BuildConfig
    store: Store

    def load_model(self) -> Any: ...

    def process(self, unit: ClipUnit, decoded: DecodedClips, model: Any) -> Finish: ...


Unit = TypeVar("Unit", AnnotateUnit, ClipUnit)


class Executor(AbstractContextManager, Protocol):
    """Runs units that are not committed yet; yields the id of each as it is committed.

    The watch is told of each unit that a worker begins or gives back. UserError when all is done
    but units with files that are out of reach.
    """

    def annotate(
        self, job: AnnotateJob, units: Sequence[AnnotateUnit], watch: Watch
    ) -> Iterator[str]: ...

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit], watch: Watch) -> Iterator[str]: ...


class UnitQueue(Generic[Unit]):
    """The units to be done. One with a file that is out of reach goes behind all others, once."""

    def __init__(self, units: Sequence[Unit], watch: Watch) -> None:
        self._todo: deque[Unit] = deque(units)
        self._watch = watch
        self._put_off: set[str] = set()
        self._left: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._todo)

    def take(self) -> Unit:
        unit = self._todo.popleft()
        self._watch.leased(unit.id)
        return unit

    def give_back(self, unit: Unit, *, first: bool = False) -> None:
        """For another worker: its own died."""
        self._watch.returned(unit.id)
        (self._todo.appendleft if first else self._todo.append)(unit)

    def put_off(self, unit: Unit, error: Unreachable) -> None:
        """Behind all others; the second time it is left for another build."""
        if unit.id in self._put_off:
            self._watch.returned(unit.id)
            self._left[unit.id] = str(error)
        else:
            self._put_off.add(unit.id)
            self.give_back(unit)

    def close(self) -> None:
        """Raises UserError when units are left."""
        if self._left:
            raise UserError(
                f"{next(iter(self._left.values()))}; {counted(len(self._left), 'unit')} with such "
                "files put off, all others are done: the same command goes on with the rest"
            )


def make_executor(config: BuildConfig) -> Executor:
    """The executor that the config names; nothing is started before it is entered."""
    if config.executor == "inline":
        from pipeline.executor.inline import InlineExecutor

        return InlineExecutor()
    if config.ray_address or os.environ.get("RAY_ADDRESS"):
        prepare_environment()  # Ray reads its token settings when it is imported
    from pipeline.executor.ray import RayExecutor

    return RayExecutor(config.ray_address, config.num_cpus)
