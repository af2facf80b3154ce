"""Rotary positions over t, h, w: queries and keys turn by where their cells are.

Pairs of channels (2i, 2i + 1) turn by coordinate times frequency, base^(-j / n) for the j-th of the
n pairs of an axis. Over an image half of the pairs belong to h and half to w, as in LlamaGen; in a
video t has a quarter of them. Cells of a coarse scale stand in the middle of what they cover of the
finest grid, so that all scales of a pyramid share one space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.scales import Schedule


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angle of each pair, [1 or b, l, head_width / 2]."""

    cos: Float[Tensor, "#b l p"]
    sin: Float[Tensor, "#b l p"]

    def rows(self, chosen: slice) -> Rotation:
        return Rotation(self.cos[:, chosen], self.sin[:, chosen])


def rotated(x: Float[Tensor, "b n l e"], rotation: Rotation | None) -> Float[Tensor, "b n l e"]:
    """Every head turned; unchanged without a rotation."""
    if rotation is None:
        return x
    cos, sin = rotation.cos[:, None].to(x.dtype), rotation.sin[:, None].to(x.dtype)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def angles(
    schedule: Schedule, head_width: int, base: float, has_time: bool | None = None
) -> Float[np.ndarray, "cells p"]:
    """The angle of each pair at each cell, float64; their cosines and sines are the table.

    `has_time`: whether t has pairs. It has in a video; its images are to turn as its frames do.
    """
    if has_time is None:
        has_time = schedule.num_latent_frames > 1
    pairs = head_width // 2
    over_time = pairs // 4 if has_time else 0
    over_width = (pairs - over_time) // 2
    counts = (over_time, pairs - over_time - over_width, over_width)
    at = cell_centres(schedule)
    turned = [
        at[:, axis, None] * base ** -(np.arange(count) / max(count, 1))
        for axis, count in enumerate(counts)
    ]
    return np.concatenate(turned, axis=1)


def cell_centres(schedule: Schedule) -> Float[np.ndarray, "cells 3"]:
    """t, h, w of each cell on the latent grid, of which the finest scale's cells are integers."""
    finest = schedule.scales[-1]
    centres = []
    for scale in schedule.scales:
        at = np.indices(scale.shape).reshape(3, -1).T + 0.5
        covered = np.array([scale.t1 - scale.t0, finest.h, finest.w]) / scale.shape
        centres.append(at * covered - 0.5 + (scale.t0, 0, 0))
    return np.concatenate(centres)
