"""The end of a run whose loss is no number: one error that names the step and the clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.shards import Batch
from tokenizer.settings import UserError

_MOST_NAMED = 8


def refuse_nonfinite(norms: Sequence[Tensor], loss: Tensor, batch: Batch, step: int) -> None:
    """UserError unless the norms of the gradient, the same on every rank, are finite.

    It comes before the weights change. Named are the clips of the ranks whose own loss is to blame,
    or all of the step when every loss is finite.
    """
    if all(bool(torch.isfinite(norm)) for norm in norms):
        return
    own = (bool(torch.isfinite(loss)), [_name(batch, place) for place in range(len(batch.arrays))])
    found = [own]
    if dist.is_available() and dist.is_initialized():
        found = [own] * dist.get_world_size()
        dist.all_gather_object(found, own)
    blamed = [names for is_finite, names in found if not is_finite]
    what = "the loss" if blamed else "the gradient of the loss"
    names = [name for part in blamed or [names for _, names in found] for name in part]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    raise UserError(
        f"step {step + 1}: {what} is not a number, with clips {', '.join(names[:_MOST_NAMED])}"
        f"{more}; the weights of the last checkpoint are sound: lower optimizer.learning_rate, or "
        "leave such clips out by data.where"
    )


def _name(batch: Batch, place: int) -> str:
    metadata = batch.metadata[place]
    return str(metadata.get("clip_id") or f"{batch.start + place} of the batch")
