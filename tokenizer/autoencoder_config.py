"""Settings of the two autoencoders, torch-free: pixels to latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenizer.settings import UserError, setting

MAX_STRIDE = 64
MAX_WIDTH = 1 << 14
MAX_BLOCKS = 64
"""Settings come with files from elsewhere: beyond these, no model is built."""
NORM_GROUPS = 32
"""Groups of the image autoencoder's norms; every width is a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The causal 3-D autoencoder: pixels fold into channels, then stages halve the grid."""

    patch: int = setting(16, "side of the pixel squares folded into channels at first")
    temporal_patch: int = setting(
        4, "frames folded into channels as well; the first frame of a stream is repeated"
    )
    spatial_stride: int = setting(16, "pixels per latent cell in height and width")
    temporal_stride: int = setting(4, "frames per latent frame after the first, which stands alone")
    channels: tuple[int, ...] = setting((128,), "width of each stage, from fine to coarse")
    encoder_blocks: tuple[int, ...] = setting((0,), "the encoder's residual blocks per stage")
    decoder_blocks: tuple[int, ...] = setting((2,), "the decoder's residual blocks per stage")
    norm: Literal["rms", "group"] = setting(
        "rms",
        "rms: over the channels of one position, frames can be tiled; group: GroupNorm per frame",
    )
    norm_groups: int = setting(32, "channel groups of norm `group`; they divide every width")

    def __post_init__(self) -> None:
        for name in ("patch", "temporal_patch", "spatial_stride", "temporal_stride"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_STRIDE or value & (value - 1):
                raise ValueError(f"{name} ({value}) must be a power of two up to {MAX_STRIDE}")
        if self.patch > self.spatial_stride:
            raise ValueError(f"patch ({self.patch}) is larger than spatial_stride")
        if self.temporal_patch > self.temporal_stride:
            raise ValueError(
                f"temporal_patch ({self.temporal_patch}) is larger than temporal_stride"
            )
        stages = len(self.halvings) + 1
        for name in ("channels", "encoder_blocks", "decoder_blocks"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} must list {stages} numbers: patch {self.patch} and strides "
                    f"{self.spatial_stride} and {self.temporal_stride} make {stages} stages"
                )
        if not all(1 <= width <= MAX_WIDTH for width in self.channels):
            raise ValueError(f"channels ({list(self.channels)}) must be 1 to {MAX_WIDTH} each")
        for name in ("encoder_blocks", "decoder_blocks"):
            if not all(0 <= number <= MAX_BLOCKS for number in getattr(self, name)):
                raise ValueError(f"{name} ({list(getattr(self, name))}) must be 0 to {MAX_BLOCKS}")
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups ({self.norm_groups}) must be at least 1")
        if self.norm == "group" and any(width % self.norm_groups for width in self.channels):
            raise ValueError(
                f"norm_groups ({self.norm_groups}) must divide every width of channels "
                f"({', '.join(map(str, self.channels))})"
            )

    @property
    def halvings(self) -> tuple[tuple[int, int], ...]:
        """(temporal, spatial) factors, 1 or 2, between consecutive stages of the encoder."""
        spatial = (self.spatial_stride // self.patch).bit_length() - 1
        temporal = (self.temporal_stride // self.temporal_patch).bit_length() - 1
        return tuple(
            (2 if stage < temporal else 1, 2 if stage < spatial else 1)
            for stage in range(max(spatial, temporal))
        )

    def check_tile(self, tile: int) -> None:
        """UserError unless frames can be coded in squares of so many pixels."""
        if self.norm != "rms":
            raise UserError(
                f"autoencoder.norm is {self.norm}: its statistics are of whole frames, tiles would "
                "give other latents; encode whole frames, or train with norm rms"
            )
        stride = self.spatial_stride
        if tile < stride or tile % stride:
            below = max(tile // stride, 1) * stride
            raise UserError(
                f"tile ({tile}) must be a multiple of {stride} pixels; "
                f"nearest are {below} and {below + stride}"
            )


@dataclass(frozen=True, kw_only=True)
class ImageAutoencoderConfig:
    """The 2-D autoencoder of VAR and LlamaGen, frame by frame; the defaults are VAR's."""

    channels: int = setting(160, "width that the multipliers multiply")
    channel_multipliers: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4), "width of each level, from fine to coarse; each halves the grid"
    )
    decoder_multipliers: tuple[int, ...] | None = setting(
        None, "the decoder's, from fine to coarse as well (default: the encoder's)"
    )
    num_blocks: int = setting(
        2, "residual blocks per level of the encoder; the decoder has one more"
    )
    z_channels: int = setting(32, "channels that the encoder gives and the decoder takes")
    kernel_size: int = setting(3, "side of the two convolutions between these channels and latents")
    temporal_stride: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "decoder_multipliers"):
            factors = getattr(self, name)
            if factors is None:
                continue
            if not 1 <= len(factors) <= 8 or min(factors) < 1:
                raise ValueError(f"{name} ({list(factors)}) must be 1 to 8 numbers of at least 1")
            if max(factors) * self.channels > MAX_WIDTH:
                raise ValueError(f"{name} ({list(factors)}) make levels wider than {MAX_WIDTH}")
            if len(factors) != len(self.channel_multipliers):
                raise ValueError(f"{name} must list {len(self.channel_multipliers)} numbers")
        if self.channels < 1 or self.channels % NORM_GROUPS:
            raise ValueError(f"channels ({self.channels}) must be a multiple of {NORM_GROUPS}")
        if not 1 <= self.num_blocks <= MAX_BLOCKS:
            raise ValueError(f"num_blocks ({self.num_blocks}) must be 1 to {MAX_BLOCKS}")
        if not 1 <= self.z_channels <= MAX_WIDTH:
            raise ValueError(f"z_channels ({self.z_channels}) must be 1 to {MAX_WIDTH}")
        if not 1 <= self.kernel_size < MAX_STRIDE or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({self.kernel_size}) must be odd and below {MAX_STRIDE}")

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell in height and width."""
        return 1 << len(self.channel_multipliers) - 1

    def check_tile(self, tile: int) -> None:
        """Always a UserError: norms and attention see whole frames."""
        raise UserError(
            "an image autoencoder has norms and attention over whole frames and cannot be tiled; "
            "encode whole frames, or use a causal autoencoder with norm rms"
        )
