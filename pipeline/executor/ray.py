"""The Ray executor: annotate and decode in tasks whose processes may die, models in actors.

Ray schedules and survives; what is correct is decided by the commit. A unit whose process crashes
or hangs is run again file by file, so that the one file that does it is named and the rest is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.clip import Clip, failed_source
from pipeline.cluster import connect
from pipeline.executor import ClipJob
from pipeline.feed import Chunk, Decoded, clips_in_order, decode_chunk
from pipeline.plan import PlannedSource
from pipeline.tokenize import ClipUnit
from tokenizer.settings import UserError

_MODEL_RESTARTS = 3  # times that a model's actor may die in one phase before the build stops


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

    def annotate(self, job: AnnotateJob, units: Sequence[AnnotateUnit]) -> Iterator[str]:
        """A task a unit; at most two waiting per CPU, so that a large plan stays small here."""
        shared = ray.put(job)
        timeout = job.config.annotate.timeout_seconds
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        todo = deque(units)
        running: dict[ray.ObjectRef, AnnotateUnit] = {}
        while todo or running:
            while todo and len(running) < limit:
                unit = todo.popleft()
                running[_annotate.remote(shared, unit)] = unit
            done, _ = ray.wait(list(running), num_returns=1, timeout=timeout)
            for ref in done or list(running):
                unit = running.pop(ref)
                try:
                    yield _finished(ref, timeout=0 if not done else None)
                except (WorkerCrashedError, GetTimeoutError):
                    ray.cancel(ref, force=True)
                    yield self._annotate_alone(job, shared, unit, timeout)

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit]) -> Iterator[str]:
        """Leases units to model actors; an actor that dies gives its units back."""
        if not units:
            return
        settings = job.config.tokenize
        shared = ray.put(job)
        num_gpus = 1 if settings.device.startswith("cuda") else 0
        num_actors = min(settings.num_encoders, len(units))
        actor_class: Any = ray.remote(_ModelWorker).options(num_cpus=0, num_gpus=num_gpus)
        todo = deque(units)
        deaths = 0
        idle = [actor_class.remote(shared) for _ in range(num_actors)]
        running: dict[ray.ObjectRef, tuple[Any, ClipUnit]] = {}
        while todo or running:
            while todo and idle:
                unit, actor = todo.popleft(), idle.pop()
                running[actor.run.remote(unit, todo[0] if todo else None)] = (actor, unit)
            done, _ = ray.wait(list(running), num_returns=1)
            for ref in done:
                actor, unit = running.pop(ref)
                try:
                    yield _finished(ref)
                    idle.append(actor)
                except RayActorError as error:
                    deaths += 1
                    if deaths > _MODEL_RESTARTS:
                        raise UserError(
                            f"the model's process died {deaths} times: {error}"
                        ) from None
                    todo.appendleft(unit)
                    idle.append(actor_class.remote(shared))
        for actor in idle:
            ray.kill(actor)

    def _annotate_alone(
        self, job: AnnotateJob, shared: ray.ObjectRef, unit: AnnotateUnit, timeout: float
    ) -> str:
        """Each file of a unit in a task of its own; the one that fails again is an error row."""
        rows: list[Clip] = []
        for source in unit.sources:
            ref: ray.ObjectRef[list[Clip]] = _clips_of.remote(shared, source)
            try:
                found: list[Clip] = ray.get(ref, timeout=timeout)
                rows += found
            except (WorkerCrashedError, GetTimeoutError) as error:
                ray.cancel(ref, force=True)
                kind = "timeout" if isinstance(error, GetTimeoutError) else "crashed"
                rows.append(failed_source(source.source_id, source.uri, f"error:{kind}"))
        return job.commit(unit, rows, {"isolated": True})


@ray.remote(num_cpus=1, max_retries=1)
def _annotate(job: AnnotateJob, unit: AnnotateUnit) -> str:
    return job.annotate(unit)


@ray.remote(num_cpus=1, max_retries=0)
def _clips_of(job: AnnotateJob, source: PlannedSource) -> list[Clip]:
    return job.clips_of(source)


@ray.remote(num_cpus=1, max_retries=1)
def _decode(chunk: Chunk) -> Decoded:
    return decode_chunk(chunk)


class _ModelWorker:
    """Owns a model and one unit at a time; the next unit's decoding runs ahead meanwhile."""

    def __init__(self, job: ClipJob) -> None:
        self._job = job
        self._model: Any = None
        self._ahead: deque[tuple[str, int, Chunk, ray.ObjectRef]] = deque()

    def run(self, unit: ClipUnit, following: ClipUnit | None) -> str:
        if self._model is None:
            self._model = self._job.load_model()
        results = self._results(unit, following)
        return self._job.run(unit, clips_in_order(unit.chunks, results), self._model)

    def _results(self, unit: ClipUnit, following: ClipUnit | None) -> Iterator[Decoded]:
        """Results of the unit's chunks in order; as bytes allow, the next unit's are submitted."""
        coming = deque(
            (each.id, index, chunk)
            for each in (unit, following)
            if each is not None
            for index, chunk in enumerate(each.chunks)
        )
        submitted = {(name, index) for name, index, _, _ in self._ahead}
        coming = deque(each for each in coming if each[:2] not in submitted)
        self._ahead = deque(each for each in self._ahead if each[0] == unit.id)
        for _ in unit.chunks:
            self._submit(coming)
            _, _, chunk, ref = self._ahead.popleft()
            yield _get(ref, chunk, self._job.config.annotate.timeout_seconds)

    def _submit(self, coming: deque[tuple[str, int, Chunk]]) -> None:
        in_flight = sum(chunk.size_bytes for _, _, chunk, _ in self._ahead)
        limit = self._job.config.tokenize.decode_ahead_bytes
        while coming and (not self._ahead or in_flight + coming[0][2].size_bytes <= limit):
            name, index, chunk = coming.popleft()
            self._ahead.append((name, index, chunk, _decode.remote(chunk)))
            in_flight += chunk.size_bytes


def _finished(ref: ray.ObjectRef, timeout: float | None = None) -> str:
    """A unit's id; a UserError of the worker is raised as itself, without Ray's wrapping."""
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _get(ref: ray.ObjectRef, chunk: Chunk, timeout: float) -> Decoded:
    """A decode task's result; a dead or hanging process is an error of its clips only."""
    try:
        return ray.get(ref, timeout=timeout)
    except GetTimeoutError:
        ray.cancel(ref, force=True)
        return Decoded((), "timeout", 0)
    except WorkerCrashedError:
        return Decoded((), "crashed", 0)
    except RayError as error:
        raise RuntimeError(f"{chunk.path}: decoding failed in an unexpected way") from error
