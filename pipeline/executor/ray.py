"""The Ray executor: annotate and decode in tasks whose processes may die, models in actors.

Ray schedules and survives; what is correct is decided by the commit. A task's process opens no
video itself: it has another one for that, which may crash, run out of memory or take too long and
is then replaced (`pipeline.isolation`): the file that does it is named and the rest is kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache, partial
from types import TracebackType
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.attempts import Attempts
from pipeline.clip import Clip, failed_source
from pipeline.cluster import connect
from pipeline.config import AnnotateSettings
from pipeline.executor import ClipJob
from pipeline.executor.feeder import Feeder
from pipeline.executor.unit_queue import UnitQueue
from pipeline.feed import Chunk, Decoded, decode_alone
from pipeline.isolation import Death, Expendable
from pipeline.sources.media import Unreachable
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit
from tokenizer.settings import UserError

UNITS_PER_ACTOR = 2  # one that is encoded, one whose clips are decoded meanwhile
_ACTOR_DEATHS_PER_UNIT = 3  # then the build stops: it is the model that dies, not a file
_TASK_DEATHS_PER_UNIT = 12  # then the build stops: no file can be the cause
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""For glibc: without, an encoder on the CPU gives the memory of every layer back and faults it in
again for the next, 7 % of its time."""
_TASK_DEATHS = (WorkerCrashedError, OutOfMemoryError, MemoryError)


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
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        queue = UnitQueue(units, watch)
        deaths: Counter[str] = Counter()
        running: dict[ray.ObjectRef, AnnotateUnit] = {}
        while queue or running:
            while queue and len(running) < limit:
                unit = queue.take()
                attempts.begin(unit.id)
                running[_annotate.remote(shared, unit)] = unit
            (done,), _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(done)
            try:
                yield _result(done)
                attempts.end(unit.id)
            except Unreachable as error:
                attempts.end(unit.id)
                queue.put_off(unit, error)
            except _TASK_DEATHS as error:
                queue.give_back(unit)
                deaths[unit.id] += 1
                if deaths[unit.id] > _TASK_DEATHS_PER_UNIT:
                    raise _given_up(unit.id, deaths, error) from None
        queue.close()

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit], watch: Watch) -> Iterator[str]:
        """Leases units to model actors, two each; an actor that dies gives its units back."""
        if not units:
            return
        settings = job.config.tokenize
        shared = ray.put(job)
        num_gpus = 1 if settings.device.startswith("cuda") else 0
        actor_class: Any = ray.remote(_ModelWorker).options(
            num_cpus=0,
            num_gpus=num_gpus,
            max_concurrency=UNITS_PER_ACTOR,
            runtime_env={"env_vars": KEEP_MEMORY},
        )
        actors = [actor_class.remote(shared) for _ in range(min(settings.num_encoders, len(units)))]
        queue = UnitQueue(units, watch)
        deaths: Counter[str] = Counter()
        running: dict[ray.ObjectRef, tuple[Any, ClipUnit]] = {}
        while queue or running:
            for actor in _round_robin(actors, running):
                if queue:
                    unit = queue.take()
                    running[actor.run.remote(unit)] = (actor, unit)
            done, _ = ray.wait(list(running), num_returns=1)
            actor, unit = running.pop(done[0])
            try:
                yield _result(done[0])
            except Unreachable as error:
                queue.put_off(unit, error)
            except RayActorError as error:
                lost = [ref for ref, (owner, _) in running.items() if owner is actor]
                back = [unit, *(running.pop(ref)[1] for ref in lost)]
                for each in reversed(back):
                    queue.give_back(each, first=True)
                    deaths[each.id] += 1
                if max(deaths[each.id] for each in back) > _ACTOR_DEATHS_PER_UNIT:
                    raise _given_up(unit.id, deaths, error) from None
                actors[actors.index(actor)] = actor_class.remote(shared)
        for actor in actors:
            ray.kill(actor)
        queue.close()


@ray.remote(num_cpus=1, max_retries=0)
def _annotate(job: AnnotateJob, unit: AnnotateUnit) -> str:
    """Each file of a unit; one whose process has no end of its own is an error row."""
    started = time.monotonic()
    lean, limits = job.lean(), job.config.annotate
    servant = _servant(limits.memory_bytes, job.recipe.preload())
    scans: list[list[Clip]] = []
    deaths: dict[str, str] = {}
    for source in unit.sources:
        outcome: Any = job.known(source)
        if outcome is None:
            call = cloudpickle.dumps(partial(lean.scan, source))
            outcome = servant.call_pickled(call, seconds=limits.timeout_seconds)
        if isinstance(outcome, Death):
            deaths[source.uri] = outcome.detail
            outcome = [failed_source(source.source_id, source.uri, f"error:{outcome.kind}")]
        scans.append(outcome)
    run: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3)}
    return job.commit(unit, scans, run | ({"deaths": deaths} if deaths else {}))


@ray.remote(num_cpus=1, max_retries=-1)  # what kills it is not the chunk
def _decode(chunk: Chunk, limits: AnnotateSettings) -> Decoded:
    process = _servant(limits.memory_bytes, chunk.recipe.preload())
    return decode_alone(chunk, process, limits.timeout_seconds)


@lru_cache(maxsize=1)
def _servant(memory_bytes: int, preload: tuple[str, ...]) -> Expendable:
    """The process that this one has for files of strangers."""
    return Expendable(memory_bytes, preload)


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
            submit=lambda chunk: _decode.remote(chunk, limits),
            collect=lambda ref, chunk: _result(ref),
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


def _round_robin(actors: Sequence[Any], running: dict[Any, tuple[Any, ClipUnit]]) -> Iterator[Any]:
    """Actors with room for another unit, the idlest first, until all are full."""
    load = {id(actor): 0 for actor in actors}
    for actor, _ in running.values():
        load[id(actor)] += 1
    for level in range(UNITS_PER_ACTOR):
        yield from (actor for actor in actors if load[id(actor)] <= level)


def _result(ref: ray.ObjectRef) -> Any:
    """A task's value; what the worker raised for the user, or for want of memory, as itself."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, MemoryError, OSError)):
            raise error.cause from None
        raise


def _given_up(unit_id: str, deaths: Counter[str], error: BaseException) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # behind a traceback
    return UserError(f"the process at unit {unit_id} died {deaths[unit_id]} times: {reason}")
