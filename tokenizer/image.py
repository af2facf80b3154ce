"""The image autoencoder of the VAR and LlamaGen families: a frame to a grid of latents, and back.

Levels of residual blocks halve the grid; at the coarsest level every block is followed by
attention over the whole frame (Rombach et al. 2022, the KL/VQ autoencoder of latent diffusion).
Each frame stands alone, so a clip is its frames, and an image is the first frame of any video.

    autoencoder = ImageAutoencoder(config, latent_channels=32)
    latents = autoencoder.encode(frames)                   # [b, 3, t, h, w] -> [b, 32, t, h2, w2]
    frames = autoencoder.decode(latents)

`tokenizer.published` loads published weights into it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.autoencoder_config import NORM_GROUPS, ImageAutoencoderConfig
from tokenizer.causal import Past

FRAME_CHANNELS = 3


class ImageAutoencoder(nn.Module):
    """Frames [b, 3, t, h, w] in [-1, 1] to latents [b, c, t, h / s, w / s], frame by frame."""

    def __init__(self, config: ImageAutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.temporal_stride = config.temporal_stride
        self.spatial_stride = config.spatial_stride
        size = config.kernel_size
        self.encoder = Encoder(config)
        self.to_latents = nn.Conv2d(config.z_channels, latent_channels, size, padding=size // 2)
        self.from_latents = nn.Conv2d(latent_channels, config.z_channels, size, padding=size // 2)
        self.decoder = Decoder(config)

    @property
    def last_weights(self) -> list[Tensor]:
        """The weights that the decoder's pixels come from directly."""
        return [self.decoder.leave.weight]

    def encode(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c t h2 w2"]:
        """All frames in one pass: what training uses."""
        images = frames.movedim(2, 1)
        latents = self.to_latents(self.encoder(images.flatten(0, 1)))
        return latents.unflatten(0, images.shape[:2]).movedim(1, 2)

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t h2 w2"]:
        """All frames in one pass; not clipped to [-1, 1]."""
        grids = latents.movedim(2, 1)
        images = self.decoder(self.from_latents(grids.flatten(0, 1)))
        return images.unflatten(0, grids.shape[:2]).movedim(1, 2)

    def encode_piece(
        self, frames: Float[Tensor, "b 3 t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t h2 w2"], Past]:
        """The next frames of a stream; there is nothing to remember."""
        return self.encode_canonically(frames), past

    def decode_piece(
        self, latents: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b 3 t h2 w2"], Past]:
        """The next latent frames of a stream; there is nothing to remember."""
        return self.decode_canonically(latents), past

    def encode_canonically(
        self, frames: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b c t h2 w2"]:
        """One frame of every clip after another: the encoding that codes are made of."""
        return torch.cat([self.encode(frame) for frame in frames.split(1, dim=2)], dim=2)

    def decode_canonically(
        self, latents: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b 3 t h2 w2"]:
        """One frame of every clip after another."""
        return torch.cat([self.decode(grid) for grid in latents.split(1, dim=2)], dim=2)


class Encoder(nn.Module):
    """Images to grids of `config.z_channels` channels; levels from the finest to the coarsest."""

    def __init__(self, config: ImageAutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.channel_multipliers]
        coarsest = len(widths) - 1
        self.enter = _conv(FRAME_CHANNELS, config.channels)
        self.levels = nn.ModuleList(
            Level(
                before,
                width,
                config.num_blocks,
                has_attention=index == coarsest,
                resample=None if index == coarsest else Downsample(width),
            )
            for index, (before, width) in enumerate(zip([config.channels, *widths], widths))
        )
        self.middle = _middle(widths[-1])
        self.norm = _norm(widths[-1])
        self.leave = _conv(widths[-1], config.z_channels)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        x = self.enter(images)
        for level in self.levels:
            x = level(x)
        return self.leave(functional.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """The way back; levels from the coarsest to the finest, each with one more block."""

    def __init__(self, config: ImageAutoencoderConfig) -> None:
        super().__init__()
        factors = config.decoder_multipliers or config.channel_multipliers
        widths = [config.channels * factor for factor in reversed(factors)]
        finest = len(widths) - 1
        self.enter = _conv(config.z_channels, widths[0])
        self.middle = _middle(widths[0])
        self.levels = nn.ModuleList(
            Level(
                before,
                width,
                config.num_blocks + 1,
                has_attention=index == 0,
                resample=None if index == finest else Upsample(width),
            )
            for index, (before, width) in enumerate(zip([widths[0], *widths], widths))
        )
        self.norm = _norm(widths[-1])
        self.leave = _conv(widths[-1], FRAME_CHANNELS)

    def forward(self, grids: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        x = self.middle(self.enter(grids))
        for level in self.levels:
            x = level(x)
        return self.leave(functional.silu(self.norm(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention behind it or none, then a resize."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_blocks: int,
        has_attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if index == 0 else out_channels, out_channels)
            for index in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            FrameAttention(out_channels) for _ in range(num_blocks if has_attention else 0)
        )
        self.resample = resample

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[index](x)
        return x if self.resample is None else self.resample(x)


class ResidualBlock(nn.Module):
    """x + two convolutions, each after norm and SiLU; x by a matrix where the width changes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = _conv(channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = _conv(out_channels, out_channels)
        self.shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        change = self.conv1(functional.silu(self.norm1(x)))
        change = self.conv2(functional.silu(self.norm2(change)))
        return change + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nn.Module):
    """x + attention of every position to every position of its frame, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows = self.qkv(self.norm(x)).flatten(2).movedim(1, 2)[:, None]
        query, key, value = rows.chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed[:, 0].movedim(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Conv2d):
    """Every second position; zeros are added right and below only, as published weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Every position four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels),
        FrameAttention(channels),
        ResidualBlock(channels, channels),
    )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def _conv(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)
