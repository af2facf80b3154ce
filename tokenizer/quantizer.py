"""Multi-scale residual quantization (VAR, Tian et al. 2024, algorithms 1 and 2) over any schedule.

Within a pyramid each scale says what the coarser ones left over: shrink the residual to the scale's
grid (area), take the nearest codes, enlarge them to the full grid, refine them with a small
convolution `phi`, add. All scales share one lookup, the codebook. Pyramids are independent of each
other, so the codes of a clip depend on its own latent frames only.

    codes = quantizer.encode(latents, schedule)            # [b, l]
    latents = quantizer.decode(codes, schedule)            # what the decoder gets
    coarse = quantizer.decode(codes, schedule, 2)          # from two scales of each pyramid

A next-scale generator is fed partial reconstructions: `input_features` for all scales at once, or
`start` for a state that grows scale by scale. All of it is float32, whatever the autocast.

Most learned codes become as short as the finest residuals. Those on a sphere cannot, nor those of
FSQ, BSQ and LFQ: with several scales each then has a learned gain, the unit of its residual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.lookups import make_lookup
from tokenizer.precision import exact_float32
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.reconstruction import PartialReconstruction
from tokenizer.scales import Scale, Schedule

GAINS_TRIED = tuple(2 ** (quarter / 4) for quarter in range(-16, 17))
"""What `begin` tries as a scale's gain, times the root mean square of its residual."""


@dataclass(frozen=True)
class Quantized:
    """What a training step needs of the quantizer."""

    latents: Float[Tensor, "b c t h w"]
    """The reconstruction; its gradient goes to the latents unchanged (straight through)."""
    reconstruction_loss: Float[Tensor, ""]
    """Mean over the scales of the squared error they leave; teaches `phi`, the gains, and codes
    that learn by gradient."""
    commitment_loss: Float[Tensor, ""]
    """The same error as a loss of the latents."""
    vectors: Float[Tensor, "n c"]
    """What codes were sought for, over all scales and clips."""
    codes: Int[Tensor, " n"] | None
    """The code of each vector; None when every vector stood for itself."""
    residual_share: Float[Tensor, " s"]
    """How much of its pyramid's mean square each scale leaves over."""
    extra: dict[str, Tensor]
    """Further terms of the loss by name, already weighted: the lookup's, mean over the scales."""


@dataclass(frozen=True)
class _Step:
    """What happened at one scale."""

    scale: Scale
    index: int
    """Its place in its pyramid."""
    sought: Float[Tensor, "n c"]
    """The vectors that codes were sought for, in units of the scale's gain."""
    ids: Int[Tensor, " n"] | None
    partial: Float[Tensor, "b c t h w"]
    """The reconstruction of its pyramid, this scale included."""


class MultiScaleQuantizer(nn.Module):
    """Latents [b, c, t, h, w] to codes [b, l] in the order of a schedule, and back."""

    log_gain: nn.Parameter | None
    _zero: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = make_lookup(config)
        num_phi = config.num_phi if config.phi_ratio else 0
        self.phi = nn.ModuleList(_identity(config.codebook_dim) for _ in range(num_phi))
        num_scales = max(len(config.scales), len(config.clip_scales or ()))
        has_gain = self.codebook.has_given_length and num_scales > 1
        self.log_gain = nn.Parameter(torch.zeros(num_scales)) if has_gain else None
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @property
    def codebook_size(self) -> int:
        return self.codebook.size

    @property
    def codebook_dim(self) -> int:
        return self.codebook.dim

    def forward(
        self, latents: Float[Tensor, "b c t h w"], schedule: Schedule, quantize: bool = True
    ) -> Quantized:
        """A training pass; without `quantize` every vector stands for itself."""
        with exact_float32(latents.device.type):
            latents = self.codebook.prepared(latents.float())
            state = self.start(schedule, len(latents))
            vectors, codes, left, commitment, share, extra = [], [], [], [], [], []
            for step in self._steps(latents, state, quantize):
                target = latents[:, :, step.scale.t0 : step.scale.t1]
                left.append(functional.mse_loss(step.partial, target.detach()))
                commitment.append(functional.mse_loss(target, step.partial.detach()))
                size = target.detach().square().mean().clamp(min=torch.finfo(torch.float32).tiny)
                share.append(left[-1].detach() / size)
                vectors.append(step.sought.detach())
                if step.ids is not None:
                    codes.append(step.ids)
                    extra.append(self.codebook.losses(step.sought))
            reconstruction_loss = torch.stack(left).mean()
            for each in self._idle(schedule, quantize):  # every parameter gets a gradient
                reconstruction_loss += 0 * each.sum()
            straight = latents + (state.latents - latents).detach() if quantize else latents
            return Quantized(
                latents=straight,
                reconstruction_loss=reconstruction_loss,
                commitment_loss=torch.stack(commitment).mean(),
                vectors=torch.cat(vectors),
                codes=torch.cat(codes) if quantize else None,
                residual_share=torch.stack(share),
                extra={
                    name: torch.stack([terms[name] for terms in extra]).mean()
                    for name in (extra[0] if extra else ())
                },
            )

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "b c t h w"], schedule: Schedule) -> Int[Tensor, "b l"]:
        """The codes of latents; every scale's, coarse to fine, pyramid by pyramid."""
        with exact_float32(latents.device.type):
            latents = self.codebook.prepared(latents.float())
            state = self.start(schedule, len(latents))
            steps = self._steps(latents, state, quantize=True)
            return torch.cat([_ids(step).view(len(latents), -1) for step in steps], dim=1)

    @torch.no_grad()
    def begin(
        self,
        latents: Float[Tensor, "b c t h w"],
        schedule: Schedule,
        generator: torch.Generator,
    ) -> None:
        """Makes the first codes and gains from latents, where there are any to be made."""
        vectors = self(latents, schedule, quantize=False).vectors
        for _ in range(self.codebook.capacity):
            self.codebook.observe(vectors, generator)
        self.codebook.initialise(vectors, generator)
        if self.log_gain is not None:
            self._fit_gains(self.codebook.prepared(latents.float()), schedule)

    def _fit_gains(self, latents: Float[Tensor, "b c t h w"], schedule: Schedule) -> None:
        """Scale after scale, the gain that leaves the least of what the scale is asked."""
        assert self.log_gain is not None
        for index in range(len(self.log_gain)):
            steps = self._steps(latents, self.start(schedule, len(latents)), quantize=True)
            asked = [step.sought for step in steps if step.index == index]
            if not asked:
                continue
            vectors = torch.cat(asked) * self.log_gain[index].exp()
            size = vectors.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            left = []
            for gain in GAINS_TRIED:
                codes = self.codebook.lookup(self.codebook.nearest(vectors / (gain * size)))
                left.append(float((vectors - gain * size * codes).square().mean()))
            self.log_gain[index] = (GAINS_TRIED[left.index(min(left))] * size).log()

    def _steps(
        self, latents: Float[Tensor, "b c t h w"], state: PartialReconstruction, quantize: bool
    ) -> Iterator[_Step]:
        """The one loop over scales: adds each to the state, its codes sought among the latents."""
        state.schedule.check_grid(*latents.shape[2:])
        if not self.codebook.entropy_weight:
            latents = latents.detach()
        for scale, index, _ in state.places:
            sought = state.residual(latents[:, :, scale.t0 : scale.t1])
            vectors = sought.detach().flatten(0, 1)
            ids = self.codebook.nearest(vectors) if quantize else None
            given = sought.detach() if ids is None else self.codebook.lookup(ids).view_as(sought)
            partial = state.add_vectors(given)
            yield _Step(scale, index, sought.flatten(0, 1), ids, partial)

    def _idle(self, schedule: Schedule, quantize: bool) -> list[nn.Parameter]:
        """What no scale of the schedule asks for: some `phi`, and codes where nothing is sought."""
        lengths = {len(pyramid) for pyramid in schedule.pyramids} if self.phi else set()
        used = {
            phi_of_scale(index, length, len(self.phi))
            for length in lengths
            for index in range(length)
        }
        idle: list[nn.Module] = [phi for number, phi in enumerate(self.phi) if number not in used]
        if not quantize:
            idle.append(self.codebook)
        return [parameter for module in idle for parameter in module.parameters()]

    @torch.no_grad()
    def decode(
        self, codes: Int[Tensor, "b l"], schedule: Schedule, num_scales: int | None = None
    ) -> Float[Tensor, "b c t h w"]:
        """Latents of codes, from the first `num_scales` scales of each pyramid (default: all)."""
        state = self.start(schedule, len(codes))
        places = [index for pyramid in schedule.pyramids for index in range(len(pyramid))]
        for index, start, end in zip(places, schedule.offsets, schedule.offsets[1:]):
            if num_scales is None or index < num_scales:
                state.add(codes[:, start:end])
            else:
                state.skip()
        return state.latents

    @torch.no_grad()
    def input_features(
        self, codes: Int[Tensor, "b l"], schedule: Schedule
    ) -> Float[Tensor, "b l c"]:
        """What a next-scale generator is fed for each code: see `PartialReconstruction`."""
        state = self.start(schedule, len(codes))
        features = []
        for start, end in zip(schedule.offsets, schedule.offsets[1:]):
            features.append(state.next_input())
            state.add(codes[:, start:end])
        return torch.cat(features, dim=1)

    def input_maps(
        self, codes: Int[Tensor, "b l"], schedule: Schedule
    ) -> list[Float[Tensor, "b c t h w"]]:
        """`input_features` as one map per scale."""
        return schedule.split(self.input_features(codes, schedule).movedim(1, -1))

    def start(self, schedule: Schedule, batch_size: int) -> PartialReconstruction:
        """A reconstruction to which scales are added one after another."""
        return PartialReconstruction(self, schedule, batch_size)

    def refined(
        self, coarse: Float[Tensor, "b c t h w"], index: int, pyramid_length: int
    ) -> Float[Tensor, "b c t h w"]:
        """An enlarged map after the `phi` of scale `index` among `pyramid_length`, if there are."""
        if not self.phi:
            return coarse
        phi = self.phi[phi_of_scale(index, pyramid_length, len(self.phi))]
        frames = coarse.movedim(2, 1)
        with exact_float32(coarse.device.type):
            convolved = phi(frames.flatten(0, 1)).view_as(frames).movedim(1, 2)
        return torch.lerp(coarse, convolved, self.config.phi_ratio)

    def gain(self, index: int) -> Float[Tensor, ""] | None:
        """The unit of scale `index` of a pyramid; None: one."""
        if self.log_gain is None:
            return None
        return self.log_gain[min(index, len(self.log_gain) - 1)].exp()

    def blank(self, *shape: int) -> Float[Tensor, "..."]:
        """Zeros where the quantizer is."""
        return self._zero.new_zeros(shape)


def phi_of_scale(index: int, num_scales: int, num_phi: int) -> int:
    """Which of the shared convolutions scale `index` uses: the nearest of VAR's ticks.

    VAR's tick marks lie on [1/3n, 1 - 1/3n] for n = 4 and on [1/2n, 1 - 1/2n] otherwise; float64
    rounding decides half-way cases there, so it does here.
    """
    if num_phi == 1 or num_scales == 1:
        return 0
    first = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    step = ((1 - first) - first) / (num_phi - 1)
    ticks = [*(first + number * step for number in range(num_phi - 1)), 1 - first]
    position = index / (num_scales - 1)
    return min(range(num_phi), key=lambda number: abs(ticks[number] - position))


def _ids(step: _Step) -> Int[Tensor, " n"]:
    assert step.ids is not None
    return step.ids


def _identity(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.dirac_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
