"""Orders: in which step each cell of a schedule is generated, as data.

    step(cell) = offset(scale) + inner(scale)[cell]

A cell is one stored code. Scales follow one another; inside a scale an *inner order* says which
cells share a step. `all` inside every scale is next-scale prediction (VAR, arXiv 2404.02905);
`raster` goes cell by cell. Steps count from 1: step 0 belongs to the condition.

    ordered(schedule, "all").num_steps       # one per scale
    ordered(schedule, "raster").num_steps    # one per cell
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tokenizer.scales import Scale, Schedule


@dataclass(frozen=True, eq=False)
class Order:
    """The step, int64 [num_tokens] in 1..num_steps, of each cell of a schedule."""

    name: str
    schedule: Schedule
    step: np.ndarray

    def __post_init__(self) -> None:
        if self.step.shape != (self.schedule.num_tokens,):
            raise ValueError(f"order {self.name!r}: a step for each of the schedule's cells")
        if set(np.unique(self.step)) != set(range(1, int(self.step.max()) + 1)):
            raise ValueError(f"order {self.name!r}: steps must be 1..n without gaps")

    @property
    def num_steps(self) -> int:
        return int(self.step.max())

    def cells(self, step: int) -> np.ndarray:
        """The cells generated in `step`, in storage order."""
        return np.flatnonzero(self.step == step)

    @property
    def fingerprint(self) -> str:
        """sha256 of the schedule and the steps: two runs with equal ones generate alike."""
        content = repr((self.schedule.to_list(), self.step.tolist()))
        return hashlib.sha256(content.encode()).hexdigest()


def all_at_once(scale: Scale) -> np.ndarray:
    """Every cell of the scale in one step."""
    return np.zeros(scale.num_tokens, dtype=np.int64)


def cell_by_cell(scale: Scale) -> np.ndarray:
    """One cell a step: t, then h, then w."""
    return np.arange(scale.num_tokens, dtype=np.int64)


INNER_ORDERS: dict[str, Callable[[Scale], np.ndarray]] = {
    "all": all_at_once,
    "raster": cell_by_cell,
}


def ordered(schedule: Schedule, inner: str) -> Order:
    """Scale after scale, with one inner order in each of them."""
    steps, offset = [], 1
    for scale in schedule.scales:
        inside = INNER_ORDERS[inner](scale)
        steps.append(offset + inside)
        offset += int(inside.max()) + 1
    return Order(inner, schedule, np.concatenate(steps))
