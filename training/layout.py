"""Layouts: what the transformer is fed to generate cells in an order, as rows of plain integers.

A row is one input of the transformer:

    step       a, when it becomes available: a context's step is that of what it is made from, a
               query's the step that it predicts; the condition has step 0
    role       context or query (see `training.attention` for who sees whom)
    embedding  what it is made from: a piece of the condition, the start, the code or the feature
               map of a cell, a mask token
    index      which piece or cell that is
    feed       the loop step of the sampler that feeds it: a context's `step`, a query's `step - 1`
    position   its row of the position table, -1 for none

`source[cell, head]` is the row whose output is the logit of that cell (-1: that head has none; a
cell's logits are the mean over its heads). Rows that would predict nothing are not laid out. A
method (`training.methods`) turns an order into a layout and does nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from training.order import Order


class Role(IntEnum):
    CONTEXT = 0
    QUERY = 1


class Embedding(IntEnum):
    PREFIX = 0  # a piece of the condition
    START = 1  # the start vector
    TOKEN = 2  # the code of a cell
    FEATURE = 3  # the partial reconstruction at a cell, from the scales before its own
    MASK = 4  # a learned vector that asks


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows for one order: int64 vectors [num_rows], and `source` [num_cells, num_heads]."""

    order: Order
    step: np.ndarray
    role: np.ndarray
    embedding: np.ndarray
    index: np.ndarray
    position: np.ndarray
    source: np.ndarray

    def __post_init__(self) -> None:
        num_cells = self.order.schedule.num_tokens
        if self.source.shape[0] != num_cells or (self.source.max(axis=1) < 0).any():
            raise ValueError("a layout must say, for each cell, which rows predict it")
        asked = self.source.max(axis=1)
        if (self.feed[asked] >= self.order.step).any():
            raise ValueError("a cell is predicted by a row that is fed after its step")

    @property
    def num_rows(self) -> int:
        return len(self.step)

    @property
    def num_heads(self) -> int:
        return self.source.shape[1]

    @property
    def feed(self) -> np.ndarray:
        return self.step - (self.role == Role.QUERY)

    @property
    def num_positions(self) -> int:
        return int(self.position.max()) + 1

    def fed(self, loop_step: int) -> np.ndarray:
        """The rows that the sampler feeds in `loop_step`, contexts first (they enter the cache)."""
        rows = np.flatnonzero(self.feed == loop_step)
        return rows[np.argsort(self.role[rows], kind="stable")]

    def due(self, loop_step: int) -> np.ndarray:
        """The cells whose logits are known after `loop_step`."""
        return self.order.cells(loop_step + 1)


@dataclass(frozen=True)
class Rows:
    """A block of context or query rows while a layout is being put together."""

    step: np.ndarray
    embedding: Embedding
    index: np.ndarray
    position: np.ndarray
    role: Role = Role.CONTEXT

    def __len__(self) -> int:
        return len(self.step)


def prefix_rows(num_prefix: int) -> Rows:
    """The pieces of the condition: step 0, no row of the position table."""
    pieces = np.arange(num_prefix)
    return Rows(np.zeros_like(pieces), Embedding.PREFIX, pieces, np.full_like(pieces, -1))


def assemble(order: Order, blocks: list[Rows], source: np.ndarray) -> Layout:
    """The layout of these blocks of rows, one after another."""
    return Layout(
        order=order,
        step=np.concatenate([each.step for each in blocks]),
        role=np.concatenate([np.full(len(each), each.role) for each in blocks]),
        embedding=np.concatenate([np.full(len(each), each.embedding) for each in blocks]),
        index=np.concatenate([each.index for each in blocks]),
        position=np.concatenate([each.position for each in blocks]),
        source=source,
    )
