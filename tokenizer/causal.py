"""Causal layers: what a video autoencoder is made of.

Nothing looks ahead, so a stream of frames may come in pieces of any number of strides. Every layer
takes the frames of a piece and what it kept of the past (None at the beginning of a stream), and
returns its output and what to keep. The caller holds that state: one model serves many streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Past = Any
"""What a layer keeps of a stream: its last input frames, that it has begun, or its parts' pasts."""

FRAME_CHANNELS = 3


class Stream(nn.Module):
    """Layers one after another; its past is the list of theirs."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t2 h2 w2"], Past]:
        pasts = [None] * len(self.layers) if past is None else past
        kept = []
        for layer, before in zip(self.layers, pasts):
            x, after = layer(x, before)
            kept.append(after)
        return x, kept


class SideBySide(nn.Module):
    """Layers of the same input, added; its past is the list of theirs."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t2 h2 w2"], Past]:
        pasts = [None] * len(self.layers) if past is None else past
        results = [layer(x, before) for layer, before in zip(self.layers, pasts)]
        return torch.stack([y for y, _ in results]).sum(dim=0), [after for _, after in results]


class CausalConv(nn.Module):
    """A 3x3x3 convolution over this and the two frames before; zeros before the beginning.

    With a time stride of 2 it gives a frame for input frames 0, 2, 4, ... of the stream, so the
    first piece has an odd number of frames and all others an even one.
    """

    def __init__(
        self, channels: int, out_channels: int, time_stride: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.kept_frames = 3 - time_stride
        self.conv = nn.Conv3d(
            channels, out_channels, 3, stride=(time_stride, stride, stride), padding=(0, 1, 1)
        )

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t2 h2 w2"], Past]:
        before = x.new_zeros(*x.shape[:2], 2, *x.shape[3:]) if past is None else past
        x = torch.cat([before, x], dim=2)
        return self.conv(x), x[:, :, -self.kept_frames :]


class Activation(nn.Module):
    """Root-mean-square norm over the channels of one position, then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t h w"], Past]:
        size = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
        return functional.silu(x * size * self.gain), None


class GroupActivation(nn.Module):
    """GroupNorm of every frame by itself, then SiLU: causal, but a frame cannot be tiled."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t h w"], Past]:
        frames = x.movedim(2, 1)
        normed = self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return functional.silu(normed.movedim(1, 2)), None


MakeActivation = Callable[[int], nn.Module]
"""An activation of so many channels."""


class Pointwise(nn.Module):
    """A matrix at every position."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t h w"], Past]:
        return self.conv(x), None


class ResidualBlock(nn.Module):
    """x + a causal convolution and a matrix, each after an activation; begins as the identity."""

    def __init__(self, channels: int, activation: MakeActivation = Activation) -> None:
        super().__init__()
        mix = Pointwise(channels, channels)
        nn.init.zeros_(mix.conv.weight)
        self.branch = Stream(
            [activation(channels), CausalConv(channels, channels), activation(channels), mix]
        )

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t h w"], Past]:
        change, past = self.branch(x, past)
        return x + change, past


class Upsample(nn.Module):
    """Repeats positions; the first frame of a stream stays single."""

    def __init__(self, time: int, space: int) -> None:
        super().__init__()
        self.time = time
        self.space = space

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t2 h2 w2"], Past]:
        if self.time > 1:
            repeated = x.repeat_interleave(self.time, dim=2)
            x = repeated[:, :, self.time - 1 :] if past is None else repeated
        if self.space > 1:
            x = x.repeat_interleave(self.space, dim=3).repeat_interleave(self.space, dim=4)
        return x, True


class Fold(nn.Module):
    """Blocks of pixels into channels by one matrix; the first frame of a stream fills a block.

    The matrix sees pixels times `input_scale`, so that its entries are about one: an optimizer that
    moves each entry by the learning rate would otherwise move the sum over a block by far too much.
    """

    def __init__(self, time: int, side: int, channels: int) -> None:
        super().__init__()
        self.time = time
        self.side = side
        self.linear = nn.Linear(FRAME_CHANNELS * time * side**2, channels)
        self.input_scale = self.linear.in_features**-0.5
        nn.init.uniform_(self.linear.weight, -1, 1)

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t2 h2 w2"], Past]:
        return self.linear(self.blocks(x, past) * self.input_scale).movedim(-1, 1), True

    def blocks(
        self, x: Float[Tensor, "b 3 t h w"], past: Past = None
    ) -> Float[Tensor, "b t2 h2 w2 n"]:
        """The values of each block, in the order of the matrix's columns."""
        if past is None and self.time > 1:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x], dim=2)
        b, c, t, h, w = x.shape
        time, side = self.time, self.side
        blocks = x.reshape(b, c, t // time, time, h // side, side, w // side, side)
        return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


class Unfold(nn.Module):
    """Channels into blocks of pixels by one matrix; of the first block only the last frame."""

    def __init__(self, time: int, side: int, channels: int) -> None:
        super().__init__()
        self.time = time
        self.side = side
        self.linear = nn.Linear(channels, FRAME_CHANNELS * time * side**2)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b 3 t2 h2 w2"], Past]:
        b, _, t, h, w = x.shape
        time, side = self.time, self.side
        blocks = self.linear(x.movedim(1, -1)).view(b, t, h, w, FRAME_CHANNELS, time, side, side)
        frames = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7)
        frames = frames.reshape(b, FRAME_CHANNELS, t * time, h * side, w * side)
        return (frames[:, :, time - 1 :] if past is None else frames), True
