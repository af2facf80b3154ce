"""What training minimises, term by term: how far pixels are off, and how far latents from codes.

Every term is a mean over the clips of a batch, so a mean over ranks is the mean of the whole batch.
All of it is float32, whatever the autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.loss_config import LossConfig
from tokenizer.quantizer import Quantized
from tokenizer.similarity import ms_ssim

RECONSTRUCTION = ("l1", "mse", "temporal", "ms_ssim", "lpips")
"""The terms that say how far a reconstruction is off."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of clips [b, c, t, h, w] in [-1, 1], one by one: [b]."""


class LossOutput(NamedTuple):
    """A training step's loss, and its terms by name, unweighted and detached, for the log.

    A tuple: sharding (FSDP2 of torch 2.11) finds the loss in it, but not in a dataclass.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class WeightedTerms:
    """Terms of a loss, each with its weight."""

    terms: dict[str, tuple[float, Float[Tensor, ""]]]

    def total(self, names: Iterable[str] | None = None) -> Float[Tensor, ""]:
        """The weighted sum of all terms, or of those of `names` that there are."""
        chosen = self.terms if names is None else [name for name in names if name in self.terms]
        return torch.stack([self.terms[name][0] * self.terms[name][1] for name in chosen]).sum()

    def detached(self) -> dict[str, Tensor]:
        """The terms without their weights, and the reconstruction's PSNR."""
        found = {name: term.detach() for name, (_, term) in self.terms.items()}
        return found | {"psnr": 10 * torch.log10(4 / found["mse"])}


def tokenizer_losses(
    config: LossConfig,
    frames: Float[Tensor, "b c t h w"],
    reconstruction: Float[Tensor, "b c t h w"],
    latents: Float[Tensor, "b c t h w"],
    quantized: Quantized,
    lpips: Distance | None = None,
) -> WeightedTerms:
    """The reconstruction's errors, the quantizer's errors and the latents' size.

    `lpips` is needed when its weight is not 0. An image has no term `temporal`.
    """
    with torch.autocast(frames.device.type, enabled=False):
        reconstruction, latents = reconstruction.float(), latents.float()
        error = reconstruction - frames
        mse = error.square().mean()
        terms = {
            "l1": (config.l1, error.abs().mean()),
            "mse": (config.mse, mse),
            "quantizer": (config.quantizer, quantized.reconstruction_loss),
            "commitment": (config.quantizer * config.commitment, quantized.commitment_loss),
            "latent_size": (config.latent_size, latents.square().mean()),
        }
        if frames.shape[2] > 1:
            terms["temporal"] = (config.temporal, error.diff(dim=2).abs().mean())
        terms |= {name: (config.quantizer, term) for name, term in quantized.extra.items()}
        if config.ms_ssim:
            terms["ms_ssim"] = (config.ms_ssim, 1 - ms_ssim(reconstruction, frames).mean())
        if config.lpips:
            assert lpips is not None
            terms["lpips"] = (config.lpips, lpips(reconstruction, frames).mean())
    return WeightedTerms(terms)
