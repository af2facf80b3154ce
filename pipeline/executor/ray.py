"""The Ray executor: annotate and decode in tasks whose processes may die, models in actors.

Ray schedules and survives; what is correct is decided by the commit. A unit whose process crashes,
runs out of memory or takes too long is tried once more, then file by file, each alone and with
limits, so that the one file that does it is named and the rest is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.attempts import Attempts
from pipeline.clip import Clip, failed_source
from pipeline.cluster import connect
from pipeline.config import AnnotateSettings
from pipeline.executor import ClipJob
from pipeline.executor.feeder import Feeder
from pipeline.feed import Chunk, Decoded, decode_chunk
from pipeline.isolation import limited_memory
from pipeline.plan import PlannedSource
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit
from tokenizer.settings import UserError

UNITS_PER_ACTOR = 2  # one that is encoded, one whose clips are decoded meanwhile
_ACTOR_DEATHS_PER_UNIT = 3  # then the build stops: it is the model that dies, not a file
_DEATHS: dict[type[BaseException], str] = {
    WorkerCrashedError: "crashed",
    OutOfMemoryError: "out_of_memory",
    GetTimeoutError: "timeout",
    TaskCancelledError: "timeout",
    MemoryError: "out_of_memory",
}
_KINDS_OF_DEATH = tuple(_DEATHS)


class RayExecutor:
    def __init__(self, address: str | None, num_cpus: int | None) -> None:
        self._address = address
        self._num_cpus = num_cpus
        self._stack = ExitStack()

    def __enter__(self) -> RayExecutor:
        connection: AbstractContextManager[Any] = connect(self._address, self._num_cpus)
        self._stack.enter_context(connection)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def annotate(
        self, job: AnnotateJob, units: Sequence[AnnotateUnit], watch: Watch
    ) -> Iterator[str]:
        """A task a unit; at most two waiting per CPU, so that a large plan stays small here."""
        shared = ray.put(job)
        attempts = Attempts(job.store)
        timeout = job.config.annotate.timeout_seconds
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        todo = deque(units)
        running: dict[ray.ObjectRef, AnnotateUnit] = {}
        while todo or running:
            while todo and len(running) < limit:
                unit = todo.popleft()
                if attempts.exhausted(unit.id):
                    yield self._annotate_alone(job, shared, unit)
                    attempts.end(unit.id)
                    continue
                attempts.begin(unit.id)
                watch.leased(unit.id)
                running[_annotate.remote(shared, unit)] = unit
            if not running:
                continue
            done, _ = ray.wait(list(running), num_returns=1, timeout=timeout)
            for ref in done or list(running):
                unit = running.pop(ref)
                try:
                    yield _result(ref, timeout=None if done else 0)
                    attempts.end(unit.id)
                except _KINDS_OF_DEATH:
                    ray.cancel(ref, force=True)
                    watch.returned(unit.id)
                    todo.appendleft(unit)

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit], watch: Watch) -> Iterator[str]:
        """Leases units to model actors, two each; an actor that dies gives its units back."""
        if not units:
            return
        settings = job.config.tokenize
        shared = ray.put(job)
        num_gpus = 1 if settings.device.startswith("cuda") else 0
        actor_class: Any = ray.remote(_ModelWorker).options(
            num_cpus=0, num_gpus=num_gpus, max_concurrency=UNITS_PER_ACTOR
        )
        actors = [actor_class.remote(shared) for _ in range(min(settings.num_encoders, len(units)))]
        todo = deque(units)
        deaths: dict[str, int] = {}
        running: dict[ray.ObjectRef, tuple[Any, ClipUnit]] = {}
        while todo or running:
            for actor in _round_robin(actors, running):
                if todo:
                    unit = todo.popleft()
                    running[actor.run.remote(unit)] = (actor, unit)
                    watch.leased(unit.id)
            done, _ = ray.wait(list(running), num_returns=1)
            actor, unit = running.pop(done[0])
            try:
                yield _result(done[0])
            except RayActorError as error:
                lost = [ref for ref, (owner, _) in running.items() if owner is actor]
                back = [unit, *(running.pop(ref)[1] for ref in lost)]
                for each in back:
                    watch.returned(each.id)
                    deaths[each.id] = deaths.get(each.id, 0) + 1
                if max(deaths[each.id] for each in back) > _ACTOR_DEATHS_PER_UNIT:
                    raise UserError(
                        f"the model's process died {_ACTOR_DEATHS_PER_UNIT + 1} times over the "
                        f"same unit ({unit.id}): {_first_line(error)}"
                    ) from None
                todo.extendleft(reversed(back))
                actors[actors.index(actor)] = actor_class.remote(shared)
        for actor in actors:
            ray.kill(actor)

    def _annotate_alone(self, job: AnnotateJob, shared: ray.ObjectRef, unit: AnnotateUnit) -> str:
        """Each file of a unit in a process of its own, with limits; what fails is an error row."""
        timeout = job.config.annotate.timeout_seconds
        scans: list[list[Clip]] = []
        for source in unit.sources:
            scan = _alone(lambda: _scan_alone.remote(shared, source), timeout)  # noqa: B023
            if isinstance(scan, str):
                scan = [failed_source(source.source_id, source.uri, f"error:{scan}")]
            scans.append(scan)
        return job.commit(unit, scans, {"isolated": True})


@ray.remote(num_cpus=1, max_retries=0)
def _annotate(job: AnnotateJob, unit: AnnotateUnit) -> str:
    return job.annotate(unit)


@ray.remote(num_cpus=1, max_retries=0, max_calls=1)
def _scan_alone(job: AnnotateJob, source: PlannedSource) -> list[Clip]:
    with limited_memory(job.config.annotate.memory_bytes):
        return job.scan(source)


@ray.remote(num_cpus=1, max_retries=0)
def _decode(chunk: Chunk) -> Decoded:
    return decode_chunk(chunk)


@ray.remote(num_cpus=1, max_retries=0, max_calls=1)
def _decode_alone(chunk: Chunk, memory_bytes: int) -> Decoded:
    with limited_memory(memory_bytes):
        return decode_chunk(chunk)


class _ModelWorker:
    """Owns a model. Two calls run at a time: one encodes, the other's clips are being decoded.

    Publishing a finished shard happens outside the model's turn, so that the encoder never waits
    for a disk.
    """

    def __init__(self, job: ClipJob) -> None:
        self._job = job
        self._model: Any = None
        limits = job.config.annotate
        self._feeder: Feeder[ray.ObjectRef] = Feeder(
            submit=_decode.remote,
            collect=lambda ref, chunk: _collect(ref, chunk, limits),
            limit_bytes=job.config.tokenize.decode_ahead_bytes,
        )

    def run(self, unit: ClipUnit) -> str:
        if self._job.store.has(unit.id):
            return unit.id
        with self._feeder.turn(unit) as decoded:
            if self._model is None:
                self._model = self._job.load_model()
            finish = self._job.process(unit, decoded, self._model)
        finish()
        return unit.id


def _collect(ref: ray.ObjectRef, chunk: Chunk, limits: AnnotateSettings) -> Decoded:
    """A decode task's result; a chunk that kills its process twice is done clip by clip, alone."""
    for again in (True, False):
        try:
            return _result(ref, timeout=limits.timeout_seconds)
        except _KINDS_OF_DEATH:
            ray.cancel(ref, force=True)
            if again:
                ref = _decode.remote(chunk)
    clips: list[np.ndarray] = []
    for single in chunk.singles():
        decoded = _alone(
            lambda: _decode_alone.remote(single, limits.memory_bytes),  # noqa: B023
            limits.timeout_seconds,
        )
        if isinstance(decoded, str):
            return Decoded(tuple(clips), decoded, 0)
        clips += decoded.clips
        if decoded.error is not None:
            return Decoded(tuple(clips), decoded.error, decoded.pid)
    return Decoded(tuple(clips), None, 0)


def _alone(start: Callable[[], ray.ObjectRef], timeout: float) -> Any:
    """The value of a task in a process of its own, or why it died.

    A death is believed when it repeats, since the process may have been killed from outside; a
    timeout is believed at once.
    """
    for last in (False, True):
        ref = start()
        try:
            return _result(ref, timeout=timeout)
        except _KINDS_OF_DEATH as error:
            ray.cancel(ref, force=True)
            cause = _cause_of_death(error)
            if last or cause == "timeout":
                return cause
    raise AssertionError("unreachable")


def _round_robin(actors: Sequence[Any], running: dict[Any, tuple[Any, ClipUnit]]) -> Iterator[Any]:
    """Actors with room for another unit, the idlest first, until all are full."""
    load = {id(actor): 0 for actor in actors}
    for actor, _ in running.values():
        load[id(actor)] += 1
    for level in range(UNITS_PER_ACTOR):
        yield from (actor for actor in actors if load[id(actor)] <= level)


def _result(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
    """A task's value; what the worker raised for the user, or for want of memory, as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, MemoryError, OSError)):
            raise error.cause from None
        raise


def _cause_of_death(error: BaseException) -> str:
    return next(name for kind, name in _DEATHS.items() if isinstance(error, kind))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
