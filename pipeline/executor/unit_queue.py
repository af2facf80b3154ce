"""The queue of an executor: units that are to be done, given back, and put off."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from pipeline.annotate import AnnotateUnit
from pipeline.quantities import counted
from pipeline.sources.media import Unreachable
from pipeline.status import Watch
from pipeline.tokenize import ClipUnit
from tokenizer.settings import UserError

Unit = TypeVar("Unit", AnnotateUnit, ClipUnit)


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
