"""The feeder of a model: decoded clips of one unit after the other, decoded ahead within a budget.

Units take turns at the model in the order in which they came; the chunks of those that wait are
submitted as the bytes in flight allow, so that a turn begins with clips at hand. A chunk that goes
on where another ends waits for that one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.feed import Chunk, Decoded, clips_in_order
from pipeline.tokenize import ClipUnit, DecodedClips

Ticket = TypeVar("Ticket")


@dataclass(eq=False)
class _Chunks(Generic[Ticket]):
    """The chunks of one unit: those collected, in order, and the tickets of those in flight."""

    chunks: Sequence[Chunk]
    num_collected: int = 0
    tickets: dict[int, Ticket] = field(default_factory=dict)

    def ready(self) -> Iterator[int]:
        """The places of chunks that may be submitted: none that goes on where another still is."""
        for place in range(self.num_collected, len(self.chunks)):
            goes_on = place > self.num_collected and self.chunks[place - 1].later
            if place not in self.tickets and not goes_on:
                yield place

    def bytes_in_flight(self) -> int:
        return sum(self.chunks[place].size_bytes for place in self.tickets)


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
        self._units: deque[_Chunks[Ticket]] = deque()
        self._lock = threading.Condition()

    @contextmanager
    def turn(self, unit: ClipUnit) -> Iterator[DecodedClips]:
        """Waits until the unit is first, and yields its clips in order; then the next is first."""
        mine: _Chunks[Ticket] = _Chunks(unit.chunks)
        with self._lock:
            self._units.append(mine)
        try:
            with self._lock:
                self._fill()
                self._lock.wait_for(lambda: self._units[0] is mine)
            yield clips_in_order(unit.chunks, self._results(mine))
        finally:
            with self._lock:
                self._units.remove(mine)
                self._lock.notify_all()
                self._fill()

    def _results(self, mine: _Chunks[Ticket]) -> Iterator[Decoded]:
        for place, chunk in enumerate(mine.chunks):
            with self._lock:
                self._fill()
                ticket = mine.tickets[place]
            decoded = self._collect(ticket, chunk)
            with self._lock:
                del mine.tickets[place]
                mine.num_collected += 1
                self._fill()
            yield decoded

    def _fill(self) -> None:
        """Submits what the budget allows, first units first; what is collected next in any case."""
        used = sum(unit.bytes_in_flight() for unit in self._units)
        for number, unit in enumerate(self._units):
            for place in list(unit.ready()):
                needed = unit.chunks[place].size_bytes
                is_next = number == 0 and place == unit.num_collected
                if used + needed > self._limit_bytes and not is_next:
                    return
                unit.tickets[place] = self._submit(unit.chunks[place])
                used += needed
