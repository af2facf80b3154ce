"""Conditions as the transformer sees them: prefix rows and one vector for every row.

A prompt is encoded by `training.vocabulary` into integers, -1 where there is nothing. A class is
one vector, added to every row of the clip; a caption is a prefix row per word piece (step 0,
padding unseen) and the sum of its pieces, added likewise. With a frozen text tower a caption is
what the tower says, projected: a prefix row per piece and the vector of the whole. All -1 means "no
condition": a learned vector and no visible prefix, which is what dropout trains and guidance
compares with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from training.caption_features import CaptionFeatures
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
        self.told: CaptionFeatures | None = None
        """clip_text: of the captions that prompts number, on the CPU."""
        self.from_tower = vocabulary.tower is not None
        if vocabulary.tower is not None:
            self.num_prefix = vocabulary.tower.num_pieces
            self.pooled_in = _projection(vocabulary.tower.pooled_width, width)
            self.pieces_in = _projection(vocabulary.tower.width, width)
            return
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
        if self.from_tower:
            return self._of_tower(prompts[:, 0])
        pieces = self.pooled(prompts.clamp(min=0)) * given[..., None]
        count = given.sum(dim=1, keepdim=True)
        # The sum over pieces, scaled so that long captions are no louder than short ones.
        pooled = pieces.sum(dim=1) / count.clamp(min=1).sqrt().to(pieces.dtype)
        pooled = torch.where(count > 0, pooled, self.absent)
        if not self.num_prefix:
            return Condition(pooled, pooled.new_zeros(batch_size, 0, pooled.shape[1]), given[:, :0])
        prefix = self.pieces(prompts.clamp(min=0)) + self.places.weight
        return Condition(pooled, prefix, given)

    def _of_tower(self, captions: Int[Tensor, " b"]) -> Condition:
        assert self.told is not None
        given = captions >= 0
        indices = captions.clamp(min=0).cpu()
        pieces, valid = self.told.padded(indices, self.num_prefix)
        weight = self.pieces_in.weight
        pooled = self.pooled_in(self.told.pooled[indices].to(weight))
        return Condition(
            torch.where(given[:, None], pooled, self.absent),
            self.pieces_in(pieces.to(weight)),
            valid.to(captions.device) & given[:, None],
        )


def _projection(width: int, out: int) -> nn.Linear:
    linear = nn.Linear(width, out)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
