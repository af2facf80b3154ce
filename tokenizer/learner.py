"""A tokenizer while it learns: one step's loss, with the critics that it may have to deceive.

    learner = Learner(tokenizer)
    output = learner(frames, progress, generator)      # frames float [b, 3, t, h, w] in [-1, 1]
    output.loss.backward()

`output.loss` is the tokenizer's loss plus that of the critics. Neither has a gradient for the
other's parameters, so each may have its own optimizer while the loop stays the same.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.discriminator import Discriminator, balance
from tokenizer.loss_config import LossConfig
from tokenizer.losses import RECONSTRUCTION, Distance, LossOutput, WeightedTerms, tokenizer_losses
from tokenizer.model import Tokenizer
from tokenizer.perceptual import SMALLEST_SIDE
from tokenizer.settings import UserError
from tokenizer.similarity import WINDOW


class Learner(nn.Module):
    """A tokenizer, and the discriminator if its weight is not 0.

    `lpips` is needed when its weight is not 0; it is no part of the state.
    """

    def __init__(self, tokenizer: Tokenizer, lpips: Distance | None = None) -> None:
        super().__init__()
        config = tokenizer.config.loss
        if config.lpips and lpips is None:
            raise ValueError("lpips: a loss with this weight needs the distance")
        self.tokenizer = tokenizer
        self.discriminator: Discriminator | None = None
        if config.discriminator.weight:
            self.discriminator = Discriminator(config.discriminator)
        self._lpips = lpips

    def forward(
        self, frames: Float[Tensor, "b 3 t h w"], progress: float, generator: torch.Generator
    ) -> LossOutput:
        """The loss of a batch in [-1, 1] at `progress` (0 to 1) of the training.

        In training the codebook follows the data in every step; `generator` draws the vectors that
        replace dead codes. Under torch.distributed every rank must call it in every step. In eval
        mode nothing changes, and the loss is the tokenizer's own, without the critics.
        """
        tokenizer = self.tokenizer
        latents = tokenizer.autoencoder.encode(frames)
        quantized = tokenizer.quantizer(latents, tokenizer.schedule_for(*frames.shape[2:]))
        reconstruction = tokenizer.autoencoder.decode(quantized.latents)
        losses = tokenizer_losses(
            tokenizer.config.loss, frames, reconstruction, latents, quantized, self._lpips
        )
        loss, terms = losses.total(), losses.detached()
        if self.discriminator is not None and self.training:
            adversarial = self._adversarial(
                self.discriminator, frames, reconstruction, losses, progress
            )
            loss, terms = loss + adversarial.loss, terms | adversarial.terms
        if self.training:
            restarted = tokenizer.quantizer.codebook.update(
                quantized.vectors, quantized.codes, generator
            )
            terms["restarted_codes"] = restarted.to(torch.float32)
        return LossOutput(loss, terms)

    def _adversarial(
        self,
        discriminator: Discriminator,
        frames: Float[Tensor, "b 3 t h w"],
        reconstruction: Float[Tensor, "b 3 t h w"],
        losses: WeightedTerms,
        progress: float,
    ) -> LossOutput:
        """What deceiving the critics adds to the tokenizer's loss, and the critics' own loss."""
        config = discriminator.config
        if progress < config.start_share:
            return LossOutput(reconstruction.new_zeros(()), {})
        reconstruction = reconstruction.float()
        deception = discriminator.deception(reconstruction)
        weight = torch.tensor(config.weight_at(progress), device=frames.device)
        if config.balance == "adaptive":
            weight = weight * balance(
                losses.total(RECONSTRUCTION),
                deception,
                self.tokenizer.autoencoder.last_weights,
                len(frames),
                config.max_balance,
            )
        loss, terms = discriminator.loss(frames, reconstruction)
        terms |= {"deception": deception.detach(), "deception_weight": weight}
        return LossOutput(weight * deception + loss, terms)


def check_size(config: LossConfig, height: int, width: int) -> None:
    """UserError when frames of this size are too small for a loss that has a weight."""
    critics = config.discriminator
    needed = {
        "ms_ssim": WINDOW if config.ms_ssim else 0,
        "lpips": SMALLEST_SIDE if config.lpips else 0,
        "discriminator": 2**critics.layers if critics.weight else 0,
    }
    for name, least in needed.items():
        if min(height, width) < least:
            raise UserError(
                f"loss.{name}: frames of {height} x {width} are too small for it, sides of at "
                f"least {least} pixels are needed; give it weight 0"
            )
