"""The feeder of a model: decoded clips of one unit after the other, decoded ahead within a budget.

Units take turns at the model in the order in which they came; the chunks of those that wait are
submitted as the bytes in flight allow, so that a turn begins with clips at hand. A chunk that goes
on where another ends waits for that one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.feed import Chunk, Decoded, clips_in_order
from pipeline.tokenize import ClipUnit, DecodedClips

Ticket = TypeVar("Ticket")


@dataclass
class _Queue(Generic[Ticket]):
    """The chunks of one unit: to be submitted, and in flight with their tickets."""

    coming: deque[Chunk]
    in_flight: deque[tuple[Chunk, Ticket]] = field(default_factory=deque)

    @property
    def goes_on(self) -> bool:
        """Whether the coming chunk goes on where the last in flight will end."""
        return bool(self.in_flight and self.in_flight[-1][0].later)


class Feeder(Generic[Ticket]):
    """`submit(chunk)` starts decoding and gives a ticket; `collect(ticket, chunk)` waits for it."""

    def __init__(
        self,
        submit: Callable[[Chunk], Ticket],
        collect: Callable[[Ticket, Chunk], Decoded],
        limit_bytes: int,
    ) -> None:
        self._submit = submit
        self._collect = collect
        self._limit_bytes = limit_bytes
        self._queues: deque[_Queue[Ticket]] = deque()
        self._lock = threading.Condition()

    @contextmanager
    def turn(self, unit: ClipUnit) -> Iterator[DecodedClips]:
        """Waits until the unit is first, and yields its clips in order; then the next is first."""
        queue: _Queue[Ticket] = _Queue(deque(unit.chunks))
        with self._lock:
            self._queues.append(queue)
            self._fill()
            self._lock.wait_for(lambda: self._queues[0] is queue)
        try:
            yield clips_in_order(unit.chunks, self._results(queue))
        finally:
            with self._lock:
                self._queues.remove(queue)
                self._fill()
                self._lock.notify_all()

    def _results(self, queue: _Queue[Ticket]) -> Iterator[Decoded]:
        while queue.coming or queue.in_flight:
            with self._lock:
                self._fill()
                chunk, ticket = queue.in_flight[0]
            decoded = self._collect(ticket, chunk)
            with self._lock:
                queue.in_flight.popleft()
                self._fill()
            yield decoded

    def _fill(self) -> None:
        """Submits what the budget allows, first units first; the first always has one in flight."""
        used = sum(chunk.size_bytes for queue in self._queues for chunk, _ in queue.in_flight)
        for number, queue in enumerate(self._queues):
            while queue.coming and not queue.goes_on:
                needed = queue.coming[0].size_bytes
                starving = number == 0 and not queue.in_flight
                if used + needed > self._limit_bytes and not starving:
                    return
                chunk = queue.coming.popleft()
                queue.in_flight.append((chunk, self._submit(chunk)))
                used += needed
