"""What training minimises, term by term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.config import LossConfig
from tokenizer.quantizer import Quantized


@dataclass(frozen=True)
class LossOutput:
    """A training step's loss, and its terms by name, unweighted and detached, for the log."""

    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]


def tokenizer_loss(
    config: LossConfig,
    frames: Float[Tensor, "b c t h w"],
    reconstruction: Float[Tensor, "b c t h w"],
    latents: Float[Tensor, "b c t h w"],
    quantized: Quantized,
) -> LossOutput:
    """The weighted sum of pixel errors, the quantizer's errors and the latents' size."""
    error = reconstruction - frames
    mse = error.square().mean()
    weighted = {
        "l1": (config.l1, error.abs().mean()),
        "mse": (config.mse, mse),
        "quantizer": (config.quantizer, quantized.reconstruction_loss),
        "commitment": (config.quantizer * config.commitment, quantized.commitment_loss),
        "latent_size": (config.latent_size, latents.square().mean()),
    }
    if frames.shape[2] > 1:
        weighted["temporal"] = (config.temporal, error.diff(dim=2).abs().mean())
    weighted |= {name: (config.quantizer, term) for name, term in quantized.extra.items()}
    loss = torch.stack([weight * term for weight, term in weighted.values()]).sum()
    terms = {name: term.detach() for name, (_, term) in weighted.items()}
    terms["psnr"] = 10 * torch.log10(4 / mse.detach())
    return LossOutput(loss, terms)
