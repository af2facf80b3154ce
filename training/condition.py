"""Conditions as the transformer sees them: prefix rows and one vector for every row.

A prompt is encoded by `training.vocabulary` into integers, -1 where there is nothing. A class is
one vector, added to every row of the clip; a caption is a prefix row per word piece (step 0,
padding unseen) and the sum of its pieces, added likewise. All -1 means "no condition": a learned
vector and no visible prefix, which is what dropout trains and guidance compares with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from training.vocabulary import Vocabulary


class Condition(NamedTuple):
    """What a batch is generated from; `valid` says which prefix rows may be seen."""

    pooled: Float[Tensor, "b d"]
    prefix: Float[Tensor, "b p d"]
    valid: Bool[Tensor, "b p"]


class ConditionEncoder(nn.Module):
    """Encoded prompts, int64 [b, length] with -1 for nothing, to a `Condition`."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.num_prefix = vocabulary.length if vocabulary.kind == "text" else 0
        self.absent = nn.Parameter(torch.zeros(width))
        if vocabulary.kind != "none":
            self.pooled = nn.Embedding(len(vocabulary), width)
            nn.init.normal_(self.pooled.weight, std=0.02)
        if vocabulary.kind == "text":
            self.pieces = nn.Embedding(len(vocabulary), width)
            self.places = nn.Embedding(vocabulary.length, width)
            nn.init.normal_(self.pieces.weight, std=0.02)
            nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, prompts: Int[Tensor, "b n"]) -> Condition:
        batch_size, length = prompts.shape
        given = prompts >= 0
        if not length:
            prefix = self.absent.new_zeros(batch_size, 0, len(self.absent))
            return Condition(self.absent.expand(batch_size, -1), prefix, given)
        pieces = self.pooled(prompts.clamp(min=0)) * given[..., None]
        count = given.sum(dim=1, keepdim=True)
        # The sum over pieces, scaled so that long captions are no louder than short ones.
        pooled = pieces.sum(dim=1) / count.clamp(min=1).sqrt().to(pieces.dtype)
        pooled = torch.where(count > 0, pooled, self.absent)
        if not self.num_prefix:
            return Condition(pooled, pooled.new_zeros(batch_size, 0, pooled.shape[1]), given[:, :0])
        prefix = self.pieces(prompts.clamp(min=0)) + self.places.weight
        return Condition(pooled, prefix, given)
