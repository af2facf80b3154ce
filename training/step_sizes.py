"""Step sizes: how many cells each step of a random order generates.

A ratio that falls from 1 to 0 says which share of the cells is left after each step (MaskGIT's
schedules, as in ARPG, arXiv 2503.10568): few cells at first, when little is known, many at last.

    arccos(256, 32)    # (6, 5, 5, 5, ..., 17, 40)
"""

from __future__ import annotations

from collections.abc import Callable
from math import acos, cos, pi
from typing import Literal

StepSizes = Literal["arccos", "cosine", "uniform"]


def arccos(num_cells: int, num_steps: int) -> tuple[int, ...]:
    return _by_ratio(num_cells, num_steps, lambda share: acos(share) / (pi * 0.5))


def cosine(num_cells: int, num_steps: int) -> tuple[int, ...]:
    return _by_ratio(num_cells, num_steps, lambda share: cos(pi / 2 * share))


def uniform(num_cells: int, num_steps: int) -> tuple[int, ...]:
    return _by_ratio(num_cells, num_steps, lambda share: 1 - share)


def _by_ratio(num_cells: int, num_steps: int, ratio: Callable[[float], float]) -> tuple[int, ...]:
    """`num_steps` numbers of at least 1 that add up to `num_cells`."""
    sizes = []
    left = num_cells
    for step in range(1, num_steps + 1):
        steps_left = num_steps - step
        after = int(num_cells * ratio(step / num_steps)) if steps_left else 0
        after = min(max(after, steps_left), left - 1)
        sizes.append(left - after)
        left = after
    return tuple(sizes)


SIZES: dict[StepSizes, Callable[[int, int], tuple[int, ...]]] = {
    "arccos": arccos,
    "cosine": cosine,
    "uniform": uniform,
}
