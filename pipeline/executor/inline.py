"""The plain loop: everything in this process, one thing after the other.

No isolation: a file that crashes the decoder crashes the build. For tests and debugging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from pipeline.annotate import AnnotateJob, AnnotateUnit
from pipeline.executor import ClipJob
from pipeline.executor.unit_queue import Unit, UnitQueue
from pipeline.feed import clips_in_order, decode_chunk
from pipeline.sources.media import Unreachable
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit


class InlineExecutor:
    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def annotate(
        self, job: AnnotateJob, units: Sequence[AnnotateUnit], watch: Watch
    ) -> Iterator[str]:
        return _each(units, watch, job.annotate)

    def run_clips(self, job: ClipJob, units: Sequence[ClipUnit], watch: Watch) -> Iterator[str]:
        model = job.load_model() if units else None

        def run(unit: ClipUnit) -> str:
            decoded = clips_in_order(unit.chunks, map(decode_chunk, unit.chunks))
            job.process(unit, decoded, model)()
            return unit.id

        return _each(units, watch, run)


def _each(units: Sequence[Unit], watch: Watch, run: Callable[[Unit], str]) -> Iterator[str]:
    queue = UnitQueue(units, watch)
    while queue:
        unit = queue.take()
        try:
            yield run(unit)
        except Unreachable as error:
            queue.put_off(unit, error)
    queue.close()
