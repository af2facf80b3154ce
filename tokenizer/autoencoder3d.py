"""The causal 3-D autoencoder: clips of 1 + k * stride frames to 1 + k latent frames, and back.

Nothing looks ahead: convolutions see the past only, the norm sees one position, so frame 0 alone is
an image, and a video can be encoded in pieces of any number of strides. Every layer takes the
frames of a piece and what it kept of the past (None at the beginning) and returns its output and
what to keep; the caller holds that state, so one model serves many streams.

    latents, past = autoencoder.encoder(frames[:, :, :1])
    more, past = autoencoder.encoder(frames[:, :, 1:5], past)

The canonical encoding runs piece by piece: frame 0, then `temporal_stride` frames at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.config import AutoencoderConfig

Past = Any
"""What a layer keeps of a stream: its last input frames, that it has begun, or its parts' pasts."""

FRAME_CHANNELS = 3


class CausalAutoencoder(nn.Module):
    """Frames [b, 3, t, h, w] in [-1, 1] to latents [b, c, 1 + (t - 1) / stride, h / s, w / s]."""

    def __init__(self, config: AutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.temporal_stride = config.temporal_stride
        folded = FRAME_CHANNELS * config.patch**2
        stages = list(zip(config.channels, config.blocks))
        down: list[nn.Module] = [Fold(config.patch), CausalConv(folded, config.channels[0])]
        up: list[nn.Module] = [CausalConv(latent_channels, config.channels[-1])]
        for index, (width, blocks) in enumerate(stages):
            down += [ResidualBlock(width) for _ in range(blocks)]
            if index + 1 < len(stages):
                down.append(CausalConv(width, config.channels[index + 1], *config.halvings[index]))
        for index, (width, blocks) in reversed(list(enumerate(stages))):
            up += [ResidualBlock(width) for _ in range(blocks)]
            if index > 0:
                up.append(Upsample(width, config.channels[index - 1], *config.halvings[index - 1]))
        down.append(Output(config.channels[-1], latent_channels))
        up += [Output(config.channels[0], folded), Unfold(config.patch)]
        self.encoder = Stream(down)
        self.decoder = Stream(up)

    def encode(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """The whole clip in one pass: what training uses; equals `encode_canonically`."""
        return self.encoder(frames)[0]

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """The whole clip in one pass; not clipped to [-1, 1]."""
        return self.decoder(latents)[0]

    def encode_canonically(
        self, frames: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        """Frame 0, then chunks of `temporal_stride` frames: the encoding that codes are made of."""
        latents, past = self.encoder(frames[:, :, :1])
        parts = [latents]
        for start in range(1, frames.shape[2], self.temporal_stride):
            latents, past = self.encoder(frames[:, :, start : start + self.temporal_stride], past)
            parts.append(latents)
        return torch.cat(parts, dim=2)

    def decode_canonically(
        self, latents: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """One latent frame after another."""
        parts = []
        past: Past = None
        for index in range(latents.shape[2]):
            frames, past = self.decoder(latents[:, :, index : index + 1], past)
            parts.append(frames)
        return torch.cat(parts, dim=2)


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


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of one position: blind to time and space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * self.gain


class Output(nn.Module):
    """Norm, SiLU, convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = CausalConv(channels, out_channels)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t h w"], Past]:
        return self.conv(functional.silu(self.norm(x)), past)


class ResidualBlock(nn.Module):
    """x + two times (norm, SiLU, convolution); begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Stream([Output(channels, channels), Output(channels, channels)])
        last = self.branch.layers[1]
        assert isinstance(last, Output)
        nn.init.zeros_(last.conv.conv.weight)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t h w"], Past]:
        change, past = self.branch(x, past)
        return x + change, past


class Upsample(nn.Module):
    """Repeats positions, then a convolution; the first frame of a stream stays single."""

    def __init__(self, channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time = time
        self.space = space
        self.conv = CausalConv(channels, out_channels)

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t2 h2 w2"], Past]:
        if self.time > 1:
            repeated = x.repeat_interleave(self.time, dim=2)
            x = repeated[:, :, self.time - 1 :] if past is None else repeated
        if self.space > 1:
            x = x.repeat_interleave(self.space, dim=3).repeat_interleave(self.space, dim=4)
        return self.conv(x, past)


class Fold(nn.Module):
    """Squares of pixels into channels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t h2 w2"], Past]:
        frames = functional.pixel_unshuffle(x.movedim(2, 1), self.side)
        return frames.movedim(1, 2), None


class Unfold(nn.Module):
    """Channels back into squares of pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t h2 w2"], Past]:
        frames = functional.pixel_shuffle(x.movedim(2, 1), self.side)
        return frames.movedim(1, 2), None
