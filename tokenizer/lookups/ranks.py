"""The same numbers on every rank of a process group; on a single process, nothing to do."""

from __future__ import annotations

import torch.distributed
from torch import Tensor


def add_over_ranks(values: Tensor) -> None:
    """Replaces values by their sum over the ranks."""
    if _is_distributed():
        torch.distributed.all_reduce(values)


def from_first_rank(values: Tensor) -> Tensor:
    """The first rank's values."""
    values = values.contiguous()
    if _is_distributed():
        torch.distributed.broadcast(values, src=0)
    return values


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
