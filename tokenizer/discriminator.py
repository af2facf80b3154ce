"""Critics that tell clips from reconstructions patch by patch, and what they and the tokenizer
learn from each other (PatchGAN, Isola et al. 2017; hinge loss, Lim and Ye 2017).

    discriminator = Discriminator(config)
    to_tell_apart, terms = discriminator.loss(frames, reconstruction)    # teaches the critics
    to_deceive = discriminator.deception(reconstruction)                 # teaches the tokenizer

Neither loss has a gradient for the other's parameters, so both may be added up and go backward
together. A critic of frames is two-dimensional; one of clips also sees neighbours in time, and
takes an image as a clip of one frame. Norms are per sample: ranks see what one process would.
"""

from __future__ import annotations

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tokenizer.lookups.ranks import add_over_ranks
from tokenizer.loss_config import DiscriminatorConfig

_GROUP_CHANNELS = 16
_SLOPE = 0.2


class Discriminator(nn.Module):
    """One or two critics, and the running means of their verdicts that LeCAM holds on to."""

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        kinds = ("frames", "clips") if config.kind == "both" else (config.kind,)
        self.critics = nn.ModuleList(
            Critic(config.channels, config.layers, over_time=kind == "clips") for kind in kinds
        )
        self.register_buffer("real_mean", torch.zeros(len(kinds)))
        self.register_buffer("fake_mean", torch.zeros(len(kinds)))

    def forward(self, frames: Float[Tensor, "b 3 t h w"]) -> list[Float[Tensor, "b 1 t2 h2 w2"]]:
        """Each critic's verdict on patches: above 0 for clips, below for reconstructions."""
        return [critic(frames).float() for critic in self.critics]

    def loss(
        self, frames: Float[Tensor, "b 3 t h w"], reconstruction: Float[Tensor, "b 3 t h w"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The critics' loss, and its terms; under torch.distributed every rank must call it."""
        real, fake = self(frames), self(reconstruction.detach())
        hinge = _mean([_hinge(a, b) for a, b in zip(real, fake)])
        terms = {
            "critic_hinge": hinge.detach(),
            "critic_real": _mean([each.mean() for each in real]).detach(),
            "critic_fake": _mean([each.mean() for each in fake]).detach(),
        }
        if not self.config.lecam:
            return hinge, terms
        self._follow(real, fake)
        lecam = _mean(
            [
                functional.relu(a - fake_mean).square().mean()
                + functional.relu(real_mean - b).square().mean()
                for a, b, real_mean, fake_mean in zip(real, fake, self.real_mean, self.fake_mean)
            ]
        )
        terms["lecam"] = lecam.detach()
        return hinge + self.config.lecam * lecam, terms

    def deception(self, reconstruction: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
        """How little the critics take a reconstruction for a clip; teaches the tokenizer alone."""
        frozen = {name: each.detach() for name, each in self.named_parameters()}
        return _mean([-each.mean() for each in functional_call(self, frozen, (reconstruction,))])

    @torch.no_grad()
    def _follow(self, real: list[Tensor], fake: list[Tensor]) -> None:
        """Moves the running means towards those of the global batch (Tseng et al. 2021)."""
        means = [torch.stack([each.mean() for each in verdicts]) for verdicts in (real, fake)]
        count = float(len(real[0]))
        sums = torch.stack([*means, torch.ones_like(means[0])]) * count
        add_over_ranks(sums)
        self.real_mean.lerp_(sums[0] / sums[2], 1 - self.config.lecam_decay)
        self.fake_mean.lerp_(sums[1] / sums[2], 1 - self.config.lecam_decay)


class Critic(nn.Module):
    """Convolutions that halve the grid `layers` times, and one that gives a verdict per cell."""

    def __init__(self, channels: int, layers: int, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        widths = [3, *(channels * min(2**index, 8) for index in range(layers))]
        time = 3 if over_time else 1
        stages: list[nn.Module] = []
        for index, (before, after) in enumerate(zip(widths, widths[1:])):
            time_stride = 2 if over_time and index < 2 else 1
            stages.append(
                nn.Conv3d(
                    before,
                    after,
                    (time, 4, 4),
                    stride=(time_stride, 2, 2),
                    padding=(time // 2, 1, 1),
                    bias=index == 0,
                )
            )
            if index > 0:
                stages.append(nn.GroupNorm(max(1, after // _GROUP_CHANNELS), after))
            stages.append(nn.LeakyReLU(_SLOPE))
        stages.append(nn.Conv3d(widths[-1], 1, (time, 3, 3), padding=(time // 2, 1, 1)))
        self.stages = nn.Sequential(*stages)

    def forward(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 t2 h2 w2"]:
        if self.over_time:
            return self._verdicts(frames)
        verdicts = self._verdicts(frames.movedim(2, 1).flatten(0, 1)[:, :, None])
        return verdicts.squeeze(2).unflatten(0, (len(frames), -1)).movedim(1, 2)

    def _verdicts(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 t2 h2 w2"]:
        """What is compared is float32, under autocast too (whose gradient of a convolution to one
        channel is now and then no number on CPUs, torch 2.15)."""
        *stages, last = self.stages
        for stage in stages:
            frames = stage(frames)
        with torch.autocast(frames.device.type, enabled=False):
            return last(frames.float())


def balance(
    reconstruction_loss: Float[Tensor, ""],
    deception: Float[Tensor, ""],
    weights: list[Tensor],
    count: int,
    largest: float,
) -> Float[Tensor, ""]:
    """The factor at which a deception moves the decoder's last weights as much as the error does.

    |d reconstruction_loss / d weights| / (|d deception / d weights| + 1e-4), up to `largest`
    (Esser et al. 2021, equation 7). Both losses are means over `count` clips of this rank; the
    gradients are those of the global batch, so every rank must call it.
    """
    gradients = []
    for loss in (reconstruction_loss, deception):
        found = torch.autograd.grad(loss, weights, retain_graph=True)
        gradients.append(torch.cat([each.flatten().float() for each in found]))
    ones = torch.ones_like(gradients[0][:1])
    sums = torch.cat([*gradients, ones]) * count
    add_over_ranks(sums)
    of_error, of_deception = (sums[:-1] / sums[-1]).chunk(2)
    return (of_error.norm() / (of_deception.norm() + 1e-4)).clamp(0, largest)


def _hinge(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def _mean(values: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack(values).mean()
