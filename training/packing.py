"""Clips of several shapes in one sequence, each seeing itself only.

A batch has one shape. Where shapes are mixed (images and videos, square and wide), the rows of all
clips can follow one another in a single sequence instead, which wastes nothing on padding: first
the contexts of every clip, then the queries of every clip, as in any layout. Who sees whom is the
one rule of `training.attention` with the number of its clip for each row; FlexAttention skips the
blocks in which no two rows are of one clip. On a CPU the mask is dense: there a batch per shape is
faster, and gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from training.attention import Mask, Sight, make_mask
from training.fed_rows import FedRows


@dataclass(frozen=True)
class Group:
    """Clips of one shape: the rows of their layout, and which pieces of their condition count."""

    rows: FedRows
    valid: Bool[Tensor, "b p"]

    @property
    def num_clips(self) -> int:
        return len(self.valid)


@dataclass(frozen=True)
class Packing:
    """Where the rows of groups of clips are in one sequence."""

    groups: Sequence[Group]

    @property
    def num_context(self) -> int:
        return sum(each.num_clips * each.rows.num_context for each in self.groups)

    def joined(self, parts: Sequence[Shaped[Tensor, "#b r *more"]]) -> Shaped[Tensor, "..."]:
        """A tensor for each group, with the rows second, as one sequence [l, *more]."""
        contexts, queries = [], []
        for group, part in zip(self.groups, parts, strict=True):
            part = part.expand(group.num_clips, *part.shape[1:])
            contexts.append(part[:, : group.rows.num_context].flatten(0, 1))
            queries.append(part[:, group.rows.num_context :].flatten(0, 1))
        return torch.cat(contexts + queries)

    def parted(self, sequence: Float[Tensor, "l d"]) -> list[Float[Tensor, "b r d"]]:
        """The inverse of `joined`."""
        shapes = [(each.num_clips, each.rows.num_context) for each in self.groups]
        shapes += [(each.num_clips, each.rows.num_queries) for each in self.groups]
        pieces = sequence.split([clips * rows for clips, rows in shapes])
        parts = [each.unflatten(0, shape) for each, shape in zip(pieces, shapes)]
        count = len(self.groups)
        return [torch.cat(both, dim=1) for both in zip(parts[:count], parts[count:])]

    @cached_property
    def clip(self) -> Int[Tensor, " l"]:
        """The number of the clip that each row is of."""
        numbers, first = [], 0
        for group in self.groups:
            device = group.valid.device
            of_group = torch.arange(first, first + group.num_clips, device=device)
            numbers.append(of_group[:, None].expand(-1, len(group.rows.step)))
            first += group.num_clips
        return self.joined(numbers)

    def masks(self) -> tuple[Mask, ...]:
        """As `FedRows.masks`."""
        sight = Sight(
            self.joined([each.rows.step[None] for each in self.groups]),
            self.joined([each.rows.role[None] for each in self.groups]),
            torch.where(self._is_padding, -1 - self.clip, self.clip)[None],
        )
        if self.groups[0].rows.queries_meet:
            return (make_mask(sight, sight),)
        contexts, queries = (
            sight.rows(slice(self.num_context)),
            sight.rows(slice(self.num_context, None)),
        )
        return make_mask(contexts, contexts), make_mask(queries, contexts)

    @property
    def _is_padding(self) -> Bool[Tensor, " l"]:
        parts = []
        for group in self.groups:
            clips = group.rows.clips(group.valid)
            nowhere = torch.zeros_like(group.rows.step, dtype=torch.bool)[None]
            parts.append(nowhere if clips is None else clips < 0)
        return self.joined(parts)
