"""The same numbers on every rank of a process group; on a single process, nothing to do."""

from __future__ import annotations

import torch
import torch.distributed
from jaxtyping import Float
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


def mean_over_ranks(mean: Float[Tensor, " n"], count: int) -> Float[Tensor, " n"]:
    """The mean over the vectors of all ranks, from this rank's over `count` of them.

    The gradient is this rank's part: where a rank's loss counts by its share of the vectors, as the
    training loop sees to, the ranks' gradients together are that of the mean. Every rank must call
    it; without a gradient nothing is exchanged, so one rank alone may look at its own clips.
    """
    if not mean.requires_grad or not _is_distributed():
        return mean
    totals = torch.cat([mean.detach() * count, mean.new_tensor([count])])
    add_over_ranks(totals)
    return totals[:-1] / totals[-1] + (mean - mean.detach())


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
