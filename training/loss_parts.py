"""The loss of a batch by its parts: each scale of a pyramid, and each step of an order.

A glance says which steps are hard: the first, with little to go by, or the last, with much at once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.order import Order
from training.tasks.task import Mean

MOST_PARTS = 8
"""Steps are told in at most so many runs of consecutive ones."""


def loss_by_part(losses: Float[Tensor, "b l"], order: Order) -> dict[str, Mean]:
    """Losses of places, by scale (where there are several) and by step, with their counts."""
    by_place = losses.sum(dim=0)
    found = {}
    for names, members, counts in _parts(order, losses.device):
        totals = losses.new_zeros(len(names)).index_add_(0, members, by_place)
        for name, total, count in zip(names, totals.unbind(), counts):
            found[name] = Mean(total, count * len(losses))
    return found


@lru_cache(maxsize=64)
def _parts(
    order: Order, device: torch.device
) -> list[tuple[list[str], Int[Tensor, " l"], list[int]]]:
    """Names of parts, the part of each place, and how many places each has."""
    found = []
    levels = order.schedule.levels
    if len(levels) > 1:
        level_of = np.empty(len(order.schedule.scales), dtype=np.int64)
        for number, members in enumerate(levels):
            level_of[list(members)] = number
        of_place = level_of[order.schedule.scale_of_token][order.sequence]
        found.append(([f"loss/scale_{number}" for number in range(len(levels))], of_place))
    num_parts = min(order.num_steps, MOST_PARTS)
    if num_parts > 1 and not (found and order.num_steps == len(order.schedule.scales)):
        of_place = (order.step - 1) * num_parts // order.num_steps
        ends = -(-np.arange(num_parts + 1) * order.num_steps // num_parts)
        digits = len(str(order.num_steps))
        names = [
            f"loss/step_{first + 1:0{digits}d}"
            + (f"-{last:0{digits}d}" if last > first + 1 else "")
            for first, last in zip(ends, ends[1:])
        ]
        found.append((names, of_place))
    return [
        (names, torch.from_numpy(of_place).to(device), np.bincount(of_place).tolist())
        for names, of_place in found
    ]
