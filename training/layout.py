"""Layouts: what the transformer is fed to generate cells in an order, as rows of plain integers.

A row is one input of the transformer:

    step       a, when it becomes available: a context's step is that of what it is made from, a
               query's the step that it predicts; the condition has step 0
    role       context or query (see `training.attention` for who sees whom)
    embedding  what it is made from: see `Embedding`
    index      which piece of the condition, place of the order or transition vector that is
    feed       the loop step of the sampler that feeds it: a context's `step`, a query's `step - 1`
    position   the place whose cell it stands at, -1 for outside of the grid

A place is a cell in the order in which cells are generated (`training.order`), so the rows are the
same for every sample, also where each has an order of its own.

`source[place, head]` is the row whose output is the logit of that place (-1: that head has none; a
place's logits are the mean over its heads). Rows that would predict nothing and be seen by nothing
are not laid out. A method (`training.methods`) turns an order into a layout and does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from training.order import Order


class Role(IntEnum):
    CONTEXT = 0
    QUERY = 1


class Embedding(IntEnum):
    PREFIX = 0  # a piece of the condition
    START = 1  # the start vector and the condition as one vector
    TOKEN = 2  # the code at a place
    TRANSITION = 3  # a learned vector by number (PAR's)
    FEATURE = 4  # the partial reconstruction at a place, from the scales before its own
    MASK = 5  # a learned vector that asks
    MASKED_FEATURE = 6  # both: the mask where a partial reconstruction is


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows for one order: int64 vectors [num_rows], and `source` [num_places, num_heads].

    Contexts come before queries. `queries_meet`: queries of one step see one another and
    themselves; otherwise they see contexts only.
    """

    order: Order
    step: np.ndarray
    role: np.ndarray
    embedding: np.ndarray
    index: np.ndarray
    position: np.ndarray
    source: np.ndarray
    queries_meet: bool = True

    def __post_init__(self) -> None:
        num_places = self.order.schedule.num_tokens
        if self.source.shape[0] != num_places or (self.source.max(axis=1) < 0).any():
            raise ValueError("a layout must say, for each place, which rows predict it")
        feed = np.where(self.source >= 0, self.feed[self.source], -1)
        if (feed.max(axis=1) >= self.order.step).any():
            raise ValueError("a place is predicted by a row that is fed after its step")
        if (np.diff(self.role) < 0).any():
            raise ValueError("contexts must come before queries")

    @property
    def num_rows(self) -> int:
        return len(self.step)

    @property
    def num_context(self) -> int:
        return int((self.role == Role.CONTEXT).sum())

    @cached_property
    def kinds(self) -> frozenset[Embedding]:
        """The embeddings that some row has."""
        return frozenset(Embedding(kind) for kind in self.embedding.tolist())

    @property
    def num_heads(self) -> int:
        return self.source.shape[1]

    @property
    def feed(self) -> np.ndarray:
        return self.step - (self.role == Role.QUERY)

    def fed(self, loop_step: int) -> np.ndarray:
        """The rows that the sampler feeds in `loop_step`, contexts first (they enter the cache)."""
        return np.flatnonzero(self.feed == loop_step)

    def due(self, loop_step: int) -> np.ndarray:
        """The places whose logits are known after `loop_step`."""
        return self.order.places(loop_step + 1)


@dataclass(frozen=True)
class Rows:
    """A block of rows while a layout is being put together."""

    step: np.ndarray
    embedding: Embedding
    index: np.ndarray
    position: np.ndarray
    role: Role = Role.CONTEXT

    def __len__(self) -> int:
        return len(self.step)


def outside(step: int, embedding: Embedding, count: int) -> Rows:
    """`count` rows of one step that stand at no cell, numbered from 0."""
    numbers = np.arange(count)
    return Rows(np.full(count, step), embedding, numbers, np.full(count, -1))


def at_places(
    places: np.ndarray, step: np.ndarray, embedding: Embedding, role: Role = Role.CONTEXT
) -> Rows:
    """A row at each of these places."""
    return Rows(step, embedding, places, places, role)


def assemble(
    order: Order, blocks: Sequence[Rows], source: np.ndarray, *, queries_meet: bool = True
) -> Layout:
    """The layout of these blocks of rows, one after another."""
    return Layout(
        order=order,
        step=np.concatenate([each.step for each in blocks]),
        role=np.concatenate([np.full(len(each), each.role) for each in blocks]),
        embedding=np.concatenate([np.full(len(each), each.embedding) for each in blocks]),
        index=np.concatenate([each.index for each in blocks]),
        position=np.concatenate([each.position for each in blocks]),
        source=source,
        queries_meet=queries_meet,
    )
