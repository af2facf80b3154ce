"""Some rows of a layout as tensors: what the generator needs to know of those that it is fed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

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

    runs: tuple[Run, ...]
    step: Int[Tensor, " r"]
    role: Int[Tensor, " r"]
    position: Int[Tensor, " r"]
    """The place whose cell a row stands at, -1 for none."""
    prefix_piece: Int[Tensor, " r"]
    """Which piece of the condition a row is, -1 for other rows."""
    num_context: int
    queries_meet: bool

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
            runs=tuple(runs),
            step=tensor(layout.step[rows]),
            role=tensor(layout.role[rows]),
            position=tensor(layout.position[rows]),
            prefix_piece=tensor(np.where(is_prefix, layout.index[rows], -1)),
            num_context=int((layout.role[rows] == Role.CONTEXT).sum()),
            queries_meet=layout.queries_meet,
        )
