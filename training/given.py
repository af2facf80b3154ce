"""Cells of clips that are given, not generated, and what that leaves to do: editing by known cells.

Given codes are context for what is generated. In a random order the given cells come first, so all
that is generated sees them. In a fixed order they stay where they are: a cell sees those given ones
that come before it. (A scale of next-scale prediction sees the scales before it, not its own given
cells.) Steps whose cells are all given cost nothing: their rows are fed with the next pass, which
is how a beginning (the prompt of a language model) comes in by one pass.

    everything but one corner of a grid:   Given(codes, cells)    cells bool [num_tokens]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from training.layout import Layout, Role


@dataclass(frozen=True, eq=False)
class Given:
    """Codes of clips by cell, and which of them are given; the others are not looked at."""

    codes: Int[Tensor, "#b l"]
    cells: Bool[np.ndarray, " l"]
    """The same for all clips."""

    def __post_init__(self) -> None:
        if self.cells.dtype != bool or self.cells.shape != self.codes.shape[1:]:
            raise ValueError(
                f"given cells ({self.cells.dtype} {list(self.cells.shape)}) must be bool, one for "
                f"each of {list(self.codes.shape)} codes"
            )


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of the sampling loop: its loop step, the rows to feed, contexts first, and the places
    that are drawn from what comes out."""

    step: int
    rows: Int[np.ndarray, " r"]
    places: Int[np.ndarray, " n"]


def passes(layout: Layout, cells: Bool[np.ndarray, " l"] | None) -> Iterator[Pass]:
    """A pass for every step that has a cell which is not given; what waited is fed along."""
    is_given = np.zeros(layout.order.schedule.num_tokens, dtype=bool)
    if cells is not None:
        is_given = cells[layout.order.sequence]  # given cells are shuffled among themselves only
    waiting = np.empty(0, dtype=np.int64)
    for step in range(layout.order.num_steps):
        rows = np.concatenate([waiting, layout.fed(step)])
        due = layout.due(step)
        places = due[~is_given[due]]
        if len(places):
            waiting = waiting[:0]
            yield Pass(step, rows, places)
        else:
            waiting = rows[layout.role[rows] == Role.CONTEXT]
