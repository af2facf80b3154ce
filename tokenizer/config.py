"""Settings of a tokenizer, torch-free: what it is made of and how it is trained.

`TokenizerConfig()` is the demo's: clips of 9 x 64 x 64 become 3 x 4 x 4 latents and 63 codes;
`tokenizer.presets` names larger ones. A tokenizer's folder carries its settings, so a dataset does
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizer.autoencoder_config import AutoencoderConfig, ImageAutoencoderConfig
from tokenizer.loss_config import LossConfig
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule, image_and_clip
from tokenizer.settings import UserError, section, setting

MAX_LINEAR = 1 << 24
"""Entries of the matrix between a block of pixels and a latent cell."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer: pixels to latents, latents to codes, and how both are learned."""

    architecture: Literal["causal", "image"] = setting(
        "causal", "`causal` codes clips over time (section autoencoder), `image` every frame alone"
    )
    autoencoder: AutoencoderConfig = section(
        AutoencoderConfig, "pixels to latents and back, causally"
    )
    image: ImageAutoencoderConfig = section(
        ImageAutoencoderConfig, "pixels to latents and back, frame by frame"
    )
    quantizer: QuantizerConfig = section(QuantizerConfig, "latents to codes and back")
    loss: LossConfig = section(LossConfig, "what training minimises")

    def __post_init__(self) -> None:
        settings = self.quantizer
        if self.architecture == "image" and (settings.clip_scales or settings.clip_latent_frames):
            raise ValueError(
                "quantizer.clip_scales: an image tokenizer codes every frame by `scales` alone"
            )
        block = 3 * self.autoencoder.temporal_stride * self.autoencoder.spatial_stride**2
        if self.architecture == "causal" and settings.codebook_dim > block:
            raise ValueError(
                f"quantizer.codebook_dim ({settings.codebook_dim}) is more than the {block} values "
                "of the block of pixels that a latent cell stands for"
            )
        if self.architecture == "causal" and settings.codebook_dim * block > MAX_LINEAR:
            raise ValueError(
                f"quantizer.codebook_dim ({settings.codebook_dim}) times the {block} values of a "
                f"block of pixels must be at most {MAX_LINEAR}"
            )

    @property
    def in_use(self) -> AutoencoderConfig | ImageAutoencoderConfig:
        """The section of the architecture."""
        return self.image if self.architecture == "image" else self.autoencoder

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame after the first."""
        return self.in_use.temporal_stride

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell in height and width."""
        return self.in_use.spatial_stride

    def schedule_for(self, num_frames: int, height: int, width: int) -> Schedule:
        """The scales of a clip of this shape in pixels; UserError when the strides do not fit.

        Scale sides stand for shares of the latent grid: with scales 1, 2, 4 a grid of 4 x 6 gets
        1 x 2, 2 x 3 and 4 x 6 codes. An image tokenizer has a pyramid for every frame.
        """
        self.check_clip_shape(num_frames, height, width)
        grid = height // self.spatial_stride, width // self.spatial_stride
        settings = self.quantizer
        return image_and_clip(
            1 + (num_frames - 1) // self.temporal_stride,
            _fitted(settings.scales, grid),
            _fitted(settings.clip_scales or settings.scales, grid),
            1 if self.architecture == "image" else settings.clip_latent_frames,
        )

    def check_clip_shape(self, num_frames: int, height: int, width: int) -> None:
        """UserError unless frames are 1 + a multiple of the stride and the sides fit as well."""
        stride = self.temporal_stride
        if num_frames < 1 or (num_frames - 1) % stride:
            below = 1 + max(num_frames - 1, 0) // stride * stride
            raise UserError(
                f"num_frames ({num_frames}) must be 1 + a multiple of {stride}; "
                f"nearest are {below} and {below + stride}"
            )
        stride = self.spatial_stride
        for name, side in (("height", height), ("width", width)):
            if side < stride or side % stride:
                below = max(side // stride, 1) * stride
                raise UserError(
                    f"{name} ({side}) must be a multiple of {stride}; "
                    f"nearest are {below} and {below + stride}"
                )


def _fitted(sides: Sequence[int], grid: tuple[int, int]) -> list[tuple[int, int]]:
    finest = sides[-1]
    return [(_share(side, finest, grid[0]), _share(side, finest, grid[1])) for side in sides]


def _share(side: int, finest: int, cells: int) -> int:
    return max(1, (2 * side * cells + finest) // (2 * finest))
