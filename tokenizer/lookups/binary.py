"""Binary lookups: the code of a vector is the signs of its channels, 2^dim codes without a table.

LFQ (Yu et al. 2023, arXiv 2310.05737) takes the signs of free vectors, codes are +-1. BSQ (Zhao et
al. 2024, arXiv 2406.07548) puts latents on the unit sphere first, codes are +-1 / sqrt(dim) there.
The first channel is the highest bit of the id; a zero counts as negative.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.lookups.entropy import entropy_over_bits
from tokenizer.lookups.lookup import FixedLookup

LARGEST_GROUP = 10
"""Bits whose joint distribution LFQ's entropy term sees by default: 1,024 numbers a vector."""


class BinaryLookup(FixedLookup):
    """BSQ when `on_sphere`, else LFQ; `entropy_group` bits are judged together (see `entropy`)."""

    place_values: Tensor

    def __init__(
        self,
        dim: int,
        *,
        on_sphere: bool,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
        entropy_group: int | None = None,
    ) -> None:
        super().__init__(size=2**dim, dim=dim, entropy_weight=entropy_weight)
        self.on_sphere = on_sphere
        self.entropy_temperature = entropy_temperature
        self.entropy_group = entropy_group or (1 if on_sphere else min(dim, LARGEST_GROUP))
        self.magnitude = dim**-0.5 if on_sphere else 1.0
        place_values = 2 ** torch.arange(dim - 1, -1, -1)
        self.register_buffer("place_values", place_values, persistent=False)

    def prepared(self, latents: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        return functional.normalize(latents, dim=1) if self.on_sphere else latents

    def nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        return ((vectors > 0) * self.place_values).sum(dim=-1)

    def lookup(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        bits = (ids[..., None] & self.place_values) != 0
        return torch.where(bits, self.magnitude, -self.magnitude)

    def losses(self, vectors: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        if not self.entropy_weight:
            return {}
        if self.on_sphere:
            vectors = functional.normalize(vectors, dim=-1)
        # the squared distances to +magnitude and -magnitude differ by 4 * magnitude * value
        logits = vectors * (4 * self.magnitude / self.entropy_temperature)
        return {"entropy": self.entropy_weight * entropy_over_bits(logits, self.entropy_group)}
