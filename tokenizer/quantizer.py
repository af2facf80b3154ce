"""Multi-scale residual quantization (VAR, Tian et al. 2024, algorithms 1 and 2) over any schedule.

Within a pyramid each scale says what the coarser ones left over: shrink the residual to the scale's
grid (area), take the nearest codes, enlarge them to the full grid, refine them with a small
convolution `phi`, add. All scales share one codebook. Pyramids are independent of each other, so
the codes of a clip depend on its own latent frames only.

    codes = quantizer.encode(latents, schedule)            # [b, l]
    latents = quantizer.decode(codes, schedule)            # what the decoder gets
    coarse = quantizer.decode(codes, schedule, 2)          # from two scales of each pyramid

A next-scale generator is fed partial reconstructions: `input_features` for all scales at once, or
`start` for a state that grows scale by scale. All of it is float32, whatever the autocast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.codebook import Codebook
from tokenizer.config import QuantizerConfig
from tokenizer.scales import Schedule


@dataclass(frozen=True)
class Quantized:
    """What a training step needs of the quantizer."""

    latents: Float[Tensor, "b c t h w"]
    """The reconstruction; its gradient goes to the latents unchanged (straight through)."""
    reconstruction_loss: Float[Tensor, ""]
    """Mean over the scales of the squared error they leave; teaches `phi`."""
    commitment_loss: Float[Tensor, ""]
    """The same error as a loss of the latents."""
    vectors: Float[Tensor, "n c"]
    """What codes were sought for, over all scales and clips."""
    codes: Int[Tensor, " n"] | None
    """The code of each vector; None when every vector stood for itself."""


class MultiScaleQuantizer(nn.Module):
    """Latents [b, c, t, h, w] to codes [b, l] in the order of a schedule, and back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = Codebook(
            config.codebook_size, config.codebook_dim, config.ema_decay, config.restart_share
        )
        self.phi = nn.ModuleList(_identity(config.codebook_dim) for _ in range(config.num_phi))

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
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            state = self.start(schedule, len(latents))
            vectors, codes, left, commitment = [], [], [], []
            for scale in schedule.scales:
                target = latents[:, :, scale.t0 : scale.t1]
                sought = state.residual(target.detach())
                ids = self.codebook.nearest(sought.flatten(0, 1)) if quantize else None
                given = sought if ids is None else self.codebook.lookup(ids).view_as(sought)
                partial = state.add_vectors(given)
                left.append(functional.mse_loss(partial, target.detach()))
                commitment.append(functional.mse_loss(target, partial.detach()))
                vectors.append(sought.flatten(0, 1))
                if ids is not None:
                    codes.append(ids)
            straight = latents + (state.latents - latents).detach() if quantize else latents
            return Quantized(
                latents=straight,
                reconstruction_loss=torch.stack(left).mean(),
                commitment_loss=torch.stack(commitment).mean(),
                vectors=torch.cat(vectors),
                codes=torch.cat(codes) if quantize else None,
            )

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "b c t h w"], schedule: Schedule) -> Int[Tensor, "b l"]:
        """The codes of latents; every scale's, coarse to fine, pyramid by pyramid."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            state = self.start(schedule, len(latents))
            codes = []
            for scale in schedule.scales:
                sought = state.residual(latents[:, :, scale.t0 : scale.t1])
                ids = self.codebook.nearest(sought.flatten(0, 1)).view(len(latents), -1)
                state.add_vectors(self.codebook.lookup(ids))
                codes.append(ids)
            return torch.cat(codes, dim=1)

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
        """An enlarged map after the `phi` of scale `index` among `pyramid_length`."""
        phi = self.phi[phi_of_scale(index, pyramid_length, len(self.phi))]
        frames = coarse.movedim(2, 1)
        convolved = phi(frames.flatten(0, 1)).view_as(frames).movedim(1, 2)
        return torch.lerp(coarse, convolved, self.config.phi_ratio)


class PartialReconstruction:
    """The latents of a batch of clips as far as their scales are known.

    `next_input` is what a generator sees when it predicts the next scale: the partial
    reconstruction of its pyramid, shrunk to its grid; for the first scale of a later pyramid the
    last finished latent frame, repeated over time; zeros for the very first scale.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, schedule: Schedule, batch_size: int) -> None:
        self._quantizer = quantizer
        self._batch_size = batch_size
        self._places = [
            (scale, index, pyramid)
            for pyramid in schedule.pyramids
            for index, scale in enumerate(pyramid)
        ]
        self._next = 0
        self._finished: list[Tensor] = []
        self._partial = self._blank()

    @property
    def latents(self) -> Float[Tensor, "b c t h w"]:
        """The finished pyramids."""
        return torch.cat(self._finished, dim=2)

    def residual(self, target: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n c"]:
        """What the next scale's codes should say, given its pyramid's latents."""
        scale, _, _ = self._places[self._next]
        return _rows(_shrunk((target - self._partial).detach(), scale.shape))

    def next_input(self) -> Float[Tensor, "b n c"]:
        """Features for the cells of the next scale, in C order."""
        scale, index, _ = self._places[self._next]
        if index == 0 and self._finished:
            last = _shrunk(self._finished[-1][:, :, -1:], (1, scale.h, scale.w))
            return _rows(last.expand(-1, -1, scale.t, -1, -1))
        return _rows(_shrunk(self._partial, scale.shape))

    def add(self, codes: Int[Tensor, "b n"]) -> None:
        """The next scale, by its codes."""
        self.add_vectors(self._quantizer.codebook.lookup(codes))

    def add_vectors(self, vectors: Float[Tensor, "b n c"]) -> Float[Tensor, "b c t h w"]:
        """The next scale, by the vectors of its cells; returns its pyramid's reconstruction."""
        scale, index, pyramid = self._places[self._next]
        coarse = vectors.movedim(-1, 1).unflatten(2, scale.shape)
        full = _enlarged(coarse, self._partial.shape[2:], self._quantizer.config.upsample)
        self._partial = self._partial + self._quantizer.refined(full, index, len(pyramid))
        return self._advance()

    def skip(self) -> None:
        """The next scale stays out."""
        self._advance()

    def _advance(self) -> Float[Tensor, "b c t h w"]:
        _, index, pyramid = self._places[self._next]
        partial = self._partial
        self._next += 1
        if index + 1 == len(pyramid):
            self._finished.append(partial)
            if self._next < len(self._places):
                self._partial = self._blank()
        return partial

    def _blank(self) -> Float[Tensor, "b c t h w"]:
        """Zeros over the frames of the next pyramid, on the grid of its finest scale."""
        _, _, pyramid = self._places[self._next]
        finest = pyramid[-1]
        weight = self._quantizer.codebook.weight
        shape = (self._batch_size, weight.shape[1], finest.t1 - finest.t0, finest.h, finest.w)
        return weight.new_zeros(shape)


def phi_of_scale(index: int, num_scales: int, num_phi: int) -> int:
    """Which of the shared convolutions scale `index` uses: the nearest of VAR's ticks.

    VAR's tick marks lie on [1/3n, 1 - 1/3n] for n = 4 and on [1/2n, 1 - 1/2n] otherwise; float64
    rounding decides half-way cases there, so it does here.
    """
    if num_phi == 1 or num_scales == 1:
        return 0
    first = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    step = ((1 - first) - first) / (num_phi - 1)
    position = index / (num_scales - 1)
    return min(range(num_phi), key=lambda tick: abs(first + tick * step - position))


def _identity(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.dirac_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _shrunk(
    latents: Float[Tensor, "b c t h w"], shape: tuple[int, int, int]
) -> Float[Tensor, "b c t2 h2 w2"]:
    if tuple(latents.shape[2:]) == shape:
        return latents
    return functional.interpolate(latents, size=shape, mode="area")


def _enlarged(
    coarse: Float[Tensor, "b c t h w"], shape: tuple[int, ...], mode: str
) -> Float[Tensor, "b c t2 h2 w2"]:
    """Trilinear, or linear over time and then bicubic frame by frame (torch has no 5-D bicubic)."""
    if tuple(coarse.shape[2:]) == tuple(shape):
        return coarse
    if mode == "trilinear":
        return functional.interpolate(coarse, size=shape, mode="trilinear")
    frames = coarse
    if coarse.shape[2] != shape[0]:
        size = (shape[0], *coarse.shape[3:])
        frames = functional.interpolate(coarse, size=size, mode="trilinear")
    if tuple(frames.shape[3:]) == tuple(shape[1:]):
        return frames
    frames = frames.movedim(2, 1)
    full = functional.interpolate(frames.flatten(0, 1), size=shape[1:], mode="bicubic")
    return full.unflatten(0, frames.shape[:2]).movedim(1, 2)


def _rows(latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n c"]:
    return latents.flatten(2).movedim(1, 2)
