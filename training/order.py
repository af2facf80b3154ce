"""Orders: in which step each cell of a schedule is generated, as data.

    step(cell) = offset(scale) + inner(scale)[cell]

A cell is one stored code. Scales follow one another; inside a scale an *inner order* says which
cells share a step. `all` inside every scale is next-scale prediction (VAR, arXiv 2404.02905). On a
grid, which is one scale, the inner order is all there is: `raster` goes cell by cell, `par` takes
the same cell of every region (arXiv 2412.15119), `nar` all cells at one Manhattan distance from the
first (2503.10696), `random` cells in an order drawn for each sample (ARPG, 2503.10568).

Cells in the order in which they are generated have *places* 0, 1, 2, ...; steps are runs of places
and count from 1: step 0 belongs to the condition.

    over_scales(schedule, lambda scale: Inner("all")).num_steps    # one per scale
    over_grid(single_grid(5, 16, 16), Inner("par", regions=(1, 2, 2))).num_steps    # 323
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np

from tokenizer.scales import Scale, Schedule
from tokenizer.settings import UserError
from training.step_sizes import SIZES, StepSizes

InnerKind = Literal["all", "raster", "par", "nar", "random"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Inner:
    """Which cells of a grid share a step."""

    kind: InnerKind = "all"
    regions: Shape = (1, 2, 2)
    """par: into how many regions the axes t, h, w are cut."""
    starts_alone: bool = False
    """par: the first cells of the regions come one by one, once (PAR's initial tokens)."""
    num_steps: int | None = None
    """random: the number of steps (None: one per cell)."""
    sizes: StepSizes = "arccos"
    """random: how many cells each step has."""
    frame_causal: bool = False
    """The order runs in each frame by itself, one frame after another."""


@dataclass(frozen=True, eq=False)
class Order:
    """`sequence`, int64 [num_tokens]: the cell at each place; `sizes`: cells of each step."""

    name: str
    schedule: Schedule
    sequence: np.ndarray
    sizes: tuple[int, ...]
    shuffled: tuple[tuple[int, int], ...] = ()
    """Ranges of places whose cells are drawn anew for each sample."""

    def __post_init__(self) -> None:
        cells = np.arange(self.schedule.num_tokens)
        if self.sequence.shape != cells.shape or (np.sort(self.sequence) != cells).any():
            raise ValueError(f"order {self.name!r}: each of the schedule's cells must come once")
        if min(self.sizes) < 1 or sum(self.sizes) != len(cells):
            raise ValueError(f"order {self.name!r}: steps must have cells, and all of them")

    @property
    def num_steps(self) -> int:
        return len(self.sizes)

    @cached_property
    def step(self) -> np.ndarray:
        """int64 [num_tokens]: the step, from 1, of each place."""
        return np.repeat(np.arange(1, self.num_steps + 1), self.sizes)

    @property
    def most_steps(self) -> int:
        """Most steps that a clip, frame or scale can take where cells come in a random order."""
        return max((stop - start for start, stop in self.shuffled), default=0)

    @property
    def step_of_cell(self) -> np.ndarray:
        """int64 [num_tokens]: the step of each cell (where places are shuffled: one instance)."""
        steps = np.empty_like(self.step)
        steps[self.sequence] = self.step
        return steps

    def places(self, step: int) -> np.ndarray:
        """The places generated in `step`."""
        start = sum(self.sizes[: step - 1])
        return np.arange(start, start + self.sizes[step - 1])

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        """`sequence` for one sample: shuffled where the order is random."""
        sequence = self.sequence.copy()
        for start, stop in self.shuffled:
            sequence[start:stop] = sequence[start:stop][np.argsort(generator.random(stop - start))]
        return sequence

    @property
    def fingerprint(self) -> str:
        """sha256 of the schedule and the places: two runs with equal ones generate alike."""
        content = repr((self.schedule.to_list(), self.sequence.tolist(), self.sizes, self.shuffled))
        return hashlib.sha256(content.encode()).hexdigest()


def over_scales(
    schedule: Schedule, inner_of: Callable[[Scale], Inner], given: np.ndarray | None = None
) -> Order:
    """Scale after scale, with an inner order in each of them.

    `given`, bool [num_tokens]: cells that need not be generated. In a random order they come first,
    a step each, as in training; the order's steps are shared out over the others.
    """
    given = _none(schedule) if given is None else given
    parts = [
        _inside(scale.shape, inner_of(scale), given[start:stop])
        for scale, start, stop in zip(schedule.scales, schedule.offsets, schedule.offsets[1:])
    ]
    names = dict.fromkeys(inner_of(scale).kind for scale in schedule.scales)
    whole = _joined(parts)
    return Order(" ".join(names), schedule, whole.sequence, whole.sizes, whole.shuffled)


def over_grid(schedule: Schedule, inner: Inner, given: np.ndarray | None = None) -> Order:
    """One inner order over a schedule that is a single grid; UserError when it is not.

    `given` is as in `over_scales`.
    """
    shape = schedule.grid
    if shape is None:
        raise UserError(
            f"order {inner.kind!r} needs codes on one grid, and these have several scales: "
            "use method next_scale (with method.inner for its large scales), or codes of a "
            "tokenizer with one scale"
        )
    part = _inside(shape, inner, _none(schedule) if given is None else given)
    return Order(inner.kind, schedule, part.sequence, part.sizes, part.shuffled)


def check_steps(num_steps: int | None, order: Order) -> None:
    """UserError when more steps are asked of a random order than there are cells to draw."""
    if num_steps is not None and num_steps > order.most_steps:
        raise UserError(
            f"num_steps ({num_steps}) is more than the {order.most_steps} cells that come in "
            f"random order at a time: at most {order.most_steps}"
        )


@dataclass(frozen=True)
class _Part:
    sequence: np.ndarray
    sizes: tuple[int, ...]
    shuffled: tuple[tuple[int, int], ...] = ()


def _joined(parts: Sequence[_Part]) -> _Part:
    """One part behind another, over the cells of all."""
    starts = [0, *accumulate(len(part.sequence) for part in parts)]
    return _Part(
        np.concatenate([start + part.sequence for start, part in zip(starts, parts)]),
        tuple(size for part in parts for size in part.sizes),
        tuple((s + a, s + b) for s, part in zip(starts, parts) for a, b in part.shuffled),
    )


def _inside(shape: Shape, inner: Inner, given: np.ndarray) -> _Part:
    """The order inside a grid of t x h x w cells."""
    if inner.frame_causal and shape[0] > 1:
        return _joined(
            [_inside((1, *shape[1:]), inner, each) for each in np.split(given, shape[0])]
        )
    if inner.kind == "random":
        return _random(inner, given)
    steps = _STEPS[inner.kind](shape, inner)
    return _Part(np.argsort(steps, kind="stable"), tuple(np.bincount(steps).tolist()))


def _random(inner: Inner, given: np.ndarray) -> _Part:
    num_given, num_cells = int(given.sum()), len(given)
    left = num_cells - num_given
    sizes = SIZES[inner.sizes](left, min(inner.num_steps or left, left)) if left else ()
    ranges = ((0, num_given), (num_given, num_cells))
    return _Part(
        np.argsort(~given, kind="stable"),
        (1,) * num_given + sizes,
        tuple((start, stop) for start, stop in ranges if start < stop),
    )


def _none(schedule: Schedule) -> np.ndarray:
    return np.zeros(schedule.num_tokens, dtype=bool)


def _all(shape: Shape, inner: Inner) -> np.ndarray:
    return np.zeros(np.prod(shape), dtype=np.int64)


def _raster(shape: Shape, inner: Inner) -> np.ndarray:
    return np.arange(np.prod(shape))


def _nar(shape: Shape, inner: Inner) -> np.ndarray:
    return np.indices(shape).sum(axis=0).ravel()


def _par(shape: Shape, inner: Inner) -> np.ndarray:
    """The same cell of every region; the position inside a region is in raster order."""
    for name, size, count in zip("thw", shape, inner.regions):
        if count < 1 or size % count:
            raise UserError(
                f"method.regions: {count} regions do not divide {size} cells of axis {name}; "
                f"it may be {', '.join(str(n) for n in range(1, size + 1) if size % n == 0)}"
            )
    inside = [size // count for size, count in zip(shape, inner.regions)]
    at = np.indices(shape)
    position = np.ravel_multi_index([a % n for a, n in zip(at, inside)], inside).ravel()
    if not inner.starts_alone:
        return position
    region = np.ravel_multi_index([a // n for a, n in zip(at, inside)], inner.regions).ravel()
    return np.where(position == 0, region, position + np.prod(inner.regions) - 1)


_STEPS: dict[InnerKind, Callable[[Shape, Inner], np.ndarray]] = {
    "all": _all,
    "raster": _raster,
    "par": _par,
    "nar": _nar,
}
