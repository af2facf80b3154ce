"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): fixed levels per channel.

`prepared` bounds channel i by a tanh so that it covers its `levels[i]` levels; `nearest` rounds
each channel to a level. A code's vector has its levels as multiples of 1 / (levels // 2), in
[-1, 1]. The id counts levels with the first channel running fastest.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from operator import mul

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.lookups.lookup import FixedLookup

MARGIN = 1e-3
"""The tanh reaches this share beyond the outermost levels, so that they can be reached."""


class ScalarLookup(FixedLookup):
    """The product of the levels of all channels; nothing is learned, nothing can be unused."""

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(size=prod(levels), dim=len(levels))
        strides = [1, *accumulate(levels[:-1], mul)]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def prepared(self, latents: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        levels = self.levels.view(-1, *[1] * (latents.ndim - 2))
        reach = (levels - 1) * (1 + MARGIN) / 2
        offset = (levels % 2 == 0) / 2
        shift = torch.atanh(offset / reach)
        return (torch.tanh(latents + shift) * reach - offset) / (levels // 2)

    def nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        half = self.levels // 2
        steps = (vectors * half).round().to(torch.int64) + half
        return (steps.clamp(min=0).minimum(self.levels - 1) * self.strides).sum(dim=-1)

    def lookup(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        half = self.levels // 2
        steps = ids[..., None] // self.strides % self.levels - half
        return steps.to(torch.float32) / half
