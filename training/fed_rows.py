"""Some rows of a layout as tensors: what the generator needs to know of those that it is fed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenizer.scales import Schedule
from training.attention import Mask, Sight, make_mask, wide_mask
from training.layout import Embedding, Layout, Role


@dataclass(frozen=True)
class Run:
    """Consecutive rows with the same kind of embedding; `is_placed`: they stand at cells."""

    embedding: Embedding
    index: Int[Tensor, " r"]
    is_placed: bool


@dataclass(frozen=True)
class FedRows:
    """Rows in the order in which they are fed: contexts, then queries."""

    schedule: Schedule
    runs: tuple[Run, ...]
    step: Int[Tensor, " r"]
    role: Int[Tensor, " r"]
    position: Int[Tensor, " r"]
    """The place whose cell a row stands at, -1 for none."""
    prefix_piece: Int[Tensor, " r"]
    """Which piece of the condition a row is, -1 for other rows."""
    num_context: int
    queries_meet: bool
    _masks: dict[tuple[int, int | None], tuple[Mask, ...]] = field(default_factory=dict)

    @property
    def num_queries(self) -> int:
        return len(self.step) - self.num_context

    def masks(
        self, num_rows: int, valid: Bool[Tensor, "b p"] | None = None, shown: int | None = None
    ) -> tuple[Mask, ...]:
        """What the last `num_rows` of these see of all; of contexts only where queries do not meet,
        and then contexts and queries have a mask each.

        `valid` says which pieces of the condition are no padding. With `shown` the masks are dense
        and so wide, as a static cache is, and nothing is seen behind these rows.
        """
        clip = self.clips(valid)
        if clip is not None:
            return self._new_masks(num_rows, clip, shown)
        if (num_rows, shown) not in self._masks:
            self._masks[num_rows, shown] = self._new_masks(num_rows, None, shown)
        return self._masks[num_rows, shown]

    def clips(self, valid: Bool[Tensor, "b p"] | None) -> Int[Tensor, "b r"] | None:
        """0, and -1 where padding is (see `attention.Sight`); None without a prefix."""
        if valid is None or not valid.shape[1]:
            return None
        others = valid.new_ones(len(valid), 1)
        return torch.cat([valid, others], dim=1)[:, self.prefix_piece].long() - 1

    def _new_masks(
        self, num_rows: int, clip: Int[Tensor, "b r"] | None, shown: int | None
    ) -> tuple[Mask, ...]:
        sight = Sight(self.step, self.role, clip)
        first = len(self.step) - num_rows
        if self.queries_meet:
            pairs = [(sight.rows(slice(first, None)), sight)]
        else:
            parts = slice(first, self.num_context), slice(self.num_context, None)
            pairs = [(sight.rows(part), sight.rows(slice(self.num_context))) for part in parts]
        if shown is None:
            return tuple(make_mask(*pair) for pair in pairs)
        return tuple(wide_mask(*pair, shown) for pair in pairs)

    @classmethod
    def of(cls, layout: Layout, rows: Int[np.ndarray, " r"], device: torch.device) -> FedRows:
        """The given rows, in the given order."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=device)

        runs = []
        kind_of = zip(layout.embedding[rows].tolist(), (layout.position[rows] >= 0).tolist())
        start = 0
        for (kind, is_placed), group in groupby(kind_of):
            members = rows[start : start + len(list(group))]
            runs.append(Run(Embedding(kind), tensor(layout.index[members]), is_placed))
            start += len(members)
        is_prefix = layout.embedding[rows] == Embedding.PREFIX
        return cls(
            schedule=layout.order.schedule,
            runs=tuple(runs),
            step=tensor(layout.step[rows]),
            role=tensor(layout.role[rows]),
            position=tensor(layout.position[rows]),
            prefix_piece=tensor(np.where(is_prefix, layout.index[rows], -1)),
            num_context=int((layout.role[rows] == Role.CONTEXT).sum()),
            queries_meet=layout.queries_meet,
        )


@dataclass(frozen=True)
class Sources:
    """Where the logits of places are read: head h reads row `rows[h, place]`."""

    rows: Int[Tensor, "heads places"]
    share: Float[Tensor, "heads places 1"] | None
    """Of each head in the mean, 0 where it does not reach a place; None where there is one head."""

    @classmethod
    def of(cls, source: Int[np.ndarray, "places heads"], device: torch.device) -> Sources:
        """From the rows of a layout, or their places among others; -1 for none."""
        share = None
        if source.shape[1] > 1:
            count = (source >= 0).sum(axis=1, keepdims=True)
            of_head = np.where(source >= 0, 1 / count, 0.0).astype(np.float32)
            share = torch.as_tensor(of_head.T[..., None].copy(), device=device)
        rows = torch.as_tensor(np.maximum(source, 0).T.copy(), device=device)
        return cls(rows, share)
