"""The latents of clips as far as their scales are known: what the quantizer adds up.

state = quantizer.start(schedule, batch_size)
features = state.next_input()          # for the codes of the next scale
state.add(codes)
state.latents                          # once all scales are in
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.scales import Schedule

if TYPE_CHECKING:
    from tokenizer.quantizer import MultiScaleQuantizer


class PartialReconstruction:
    """The latents of a batch of clips as far as their scales are known.

    `next_input` is what a generator sees when it predicts the next scale: the partial
    reconstruction of its pyramid, shrunk to its grid; for the first scale of a later pyramid the
    last finished latent frame, repeated over time; zeros for the very first scale.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, schedule: Schedule, batch_size: int) -> None:
        self.schedule = schedule
        self._quantizer = quantizer
        self._batch_size = batch_size
        self.places = [
            (scale, index, pyramid)
            for pyramid in schedule.pyramids
            for index, scale in enumerate(pyramid)
        ]
        self._next = 0
        self._finished: list[Tensor] = []
        self._partial = self._blank()

    @property
    def last(self) -> Float[Tensor, "b c t h w"]:
        """The pyramid of the scale that came last, as far as it is known."""
        _, index, pyramid = self.places[self._next - 1]
        return self._finished[-1] if index + 1 == len(pyramid) else self._partial

    @property
    def latents(self) -> Float[Tensor, "b c t h w"]:
        """The finished pyramids."""
        return torch.cat(self._finished, dim=2)

    def residual(self, target: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n c"]:
        """What the next scale's codes should say, given its pyramid's latents, in its unit; with a
        gradient to the latents if they have one."""
        scale, index, _ = self.places[self._next]
        left_over = _rows(_shrunk(target - self._partial.detach(), scale.shape))
        gain = self._quantizer.gain(index)
        return left_over if gain is None else left_over / gain.detach()

    def next_input(self) -> Float[Tensor, "b n c"]:
        """Features for the cells of the next scale, in C order."""
        scale, index, _ = self.places[self._next]
        if index == 0 and self._finished:
            last = _shrunk(self._finished[-1][:, :, -1:], (1, scale.h, scale.w))
            return _rows(last.expand(-1, -1, scale.t, -1, -1))
        return _rows(_shrunk(self._partial, scale.shape))

    def add(self, codes: Int[Tensor, "b n"]) -> None:
        """The next scale, by its codes."""
        self.add_vectors(self._quantizer.codebook.lookup(codes))

    def add_vectors(self, vectors: Float[Tensor, "b n c"]) -> Float[Tensor, "b c t h w"]:
        """The next scale, by the vectors of its cells in its unit; returns its pyramid's
        reconstruction."""
        scale, index, pyramid = self.places[self._next]
        gain = self._quantizer.gain(index)
        if gain is not None:
            vectors = vectors * gain
        coarse = vectors.movedim(-1, 1).unflatten(2, scale.shape)
        full = _enlarged(coarse, self._partial.shape[2:], self._quantizer.config.upsample)
        self._partial = self._partial + self._quantizer.refined(full, index, len(pyramid))
        return self._advance()

    def skip(self) -> None:
        """The next scale stays out."""
        self._advance()

    def _advance(self) -> Float[Tensor, "b c t h w"]:
        _, index, pyramid = self.places[self._next]
        partial = self._partial
        self._next += 1
        if index + 1 == len(pyramid):
            self._finished.append(partial)
            if self._next < len(self.places):
                self._partial = self._blank()
        return partial

    def _blank(self) -> Float[Tensor, "b c t h w"]:
        """Zeros over the frames of the next pyramid, on the grid of its finest scale."""
        _, _, pyramid = self.places[self._next]
        finest = pyramid[-1]
        channels = self._quantizer.codebook_dim
        num_frames = finest.t1 - finest.t0
        return self._quantizer.blank(self._batch_size, channels, num_frames, finest.h, finest.w)


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
