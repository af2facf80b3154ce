"""What every lookup offers to the quantizer and to training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Renewal(NamedTuple):
    """Rows of a parameter that begin anew, and where."""

    rows: Bool[Tensor, " k"]
    values: Float[Tensor, "k c"]


class Lookup(nn.Module):
    """`size` codes, each standing for a vector of `dim` channels; all of it in float32.

    A lookup that learns from data overrides `observe`, `initialise` and `update`; for one whose
    codes are fixed they do nothing. Where lengths are given, the quantizer scales them to the data.
    """

    size: int
    dim: int
    has_given_length: bool
    """Whether codes cannot become as short as the vectors they stand for."""
    is_initialised: Tensor
    """Whether codes can be sought; before that, training makes them from what it observed."""
    entropy_weight: float
    """Weight of the entropy term in `losses`; 0: `losses` is empty."""
    capacity: int
    """How many calls of `observe` are remembered."""

    def prepared(self, latents: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        """Latents where the codes are, e.g. on the sphere; differentiable, before any scale."""
        return latents

    def nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """The code of each vector; the first of equals."""
        raise NotImplementedError

    def lookup(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        """The vectors of codes in [0, size)."""
        raise NotImplementedError

    def losses(self, vectors: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        """Further terms of the training loss by name, already weighted."""
        return {}

    def restore(self) -> None:
        """Makes training statistics fit codes that came from a file."""

    def observe(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """Remembers some vectors for `initialise`."""

    def initialise(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """The first codes, from what was observed, or from `vectors` when nothing was."""

    def update(
        self, vectors: Float[Tensor, "n c"], ids: Int[Tensor, " n"], generator: torch.Generator
    ) -> Int[Tensor, ""]:
        """Follows the data after a step; returns how many codes were put somewhere new.

        Under torch.distributed every rank must call it in every step.
        """
        return torch.zeros((), dtype=torch.int64, device=ids.device)

    def renewed(self) -> dict[nn.Parameter, Renewal]:
        """By parameter, the rows that begin anew since this was asked before.

        Whoever trains puts them there after the step; gradients, and what an optimizer remembers
        of them, are of another place.
        """
        return {}


class FixedLookup(Lookup):
    """A lookup without anything to learn from data."""

    has_given_length = True
    capacity = 0

    def __init__(self, size: int, dim: int, entropy_weight: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.dim = dim
        self.entropy_weight = entropy_weight
        self.register_buffer("is_initialised", torch.ones((), dtype=torch.bool), persistent=False)
