"""Settings of a tokenizer, torch-free: what it is made of and how it is trained.

`TokenizerConfig()` is the demo's: clips of 9 x 64 x 64 become 3 x 4 x 4 latents and 63 codes.
`PRESETS` names larger ones. A tokenizer's folder carries its settings, so a dataset does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

from tokenizer.scales import Schedule, image_and_clip
from tokenizer.settings import UserError, section, setting

MAX_CODEBOOK_SIZE = 1 << 32
"""Ids are stored as uint32 at most."""
MAX_ENTROPY_GROUP = 14


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
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} ({value}) must be a power of two")
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
        if min(self.channels) < 1 or min(self.encoder_blocks + self.decoder_blocks) < 0:
            raise ValueError("channels: widths must be at least 1 and blocks not negative")
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


NORM_GROUPS = 32
"""Groups of the image autoencoder's norms; every width is a multiple of it."""


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
            if len(factors) != len(self.channel_multipliers):
                raise ValueError(f"{name} must list {len(self.channel_multipliers)} numbers")
        if self.channels < 1 or self.channels % NORM_GROUPS:
            raise ValueError(f"channels ({self.channels}) must be a multiple of {NORM_GROUPS}")
        if self.num_blocks < 1 or self.z_channels < 1:
            raise ValueError("num_blocks: at least 1 block and 1 of z_channels are needed")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({self.kernel_size}) must be odd")

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell in height and width."""
        return 1 << len(self.channel_multipliers) - 1


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The multi-scale residual quantizer and its one lookup."""

    lookup: Literal["vq", "fsq", "bsq", "lfq"] = setting(
        "vq", "what codes are: a learned table, fixed levels per channel, or signs of the channels"
    )
    metric: Literal["l2", "cosine", "sphere"] = setting(
        "l2",
        "what is near, of vq: by distance; by angle (VAR's znorm); by angle among latents and "
        "codes of length one (LlamaGen)",
    )
    learned_by: Literal["ema", "gradient"] = setting(
        "ema", "how codes of vq follow the data: by running means, or by the quantizer's loss"
    )
    first_codes: Literal["data", "random"] = setting(
        "data", "codes of vq begin as clusters of latents, or at random within 1 / codebook_size"
    )
    levels: tuple[int, ...] = setting((), "levels of each channel, of fsq; their product is codes")
    codebook_size: int = setting(512, "number of codes")
    codebook_dim: int = setting(12, "channels of a code, and of the latents")
    scales: tuple[int, ...] = setting(
        (1, 2, 4), "sides of an image's scales; the last stands for the whole latent grid"
    )
    clip_scales: tuple[int, ...] | None = setting(
        None, "sides of a clip pyramid's scales (default: as for an image)"
    )
    clip_latent_frames: int | None = setting(
        None, "latent frames per clip pyramid (default: all after the first)"
    )
    upsample: Literal["bicubic", "trilinear"] = setting(
        "bicubic", "how a coarse scale is enlarged; bicubic works frame by frame, as VAR does"
    )
    num_phi: int = setting(3, "3x3 convolutions that refine enlarged scales, shared by ticks (VAR)")
    phi_ratio: float = setting(
        0.5, "share r of the convolution in (1 - r) x + r conv(x); with 0 there are none"
    )
    ema_decay: float = setting(0.98, "decay of the codes' running means")
    restart_share: float = setting(
        0.03, "codes used less than this share of the average are put where data is; 0: none are"
    )
    entropy_weight: float = setting(
        0.0, "weight of each vector's entropy minus that of all; not of fsq; 0: not computed"
    )
    entropy_temperature: float = setting(
        0.01, "temperature of the squared distances in the entropy term"
    )
    entropy_group: int | None = setting(
        None, "bits whose joint entropy is taken (default: bsq 1, lfq all up to 10)"
    )

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_dim < 1:
            raise ValueError("codebook_size: at least 2 codes of at least 1 channel are needed")
        for name in ("scales", "clip_scales"):
            sides = getattr(self, name)
            if sides is None:
                continue
            if not sides or min(sides) < 1 or list(sides) != sorted(sides):
                raise ValueError(f"{name} ({list(sides)}) must grow from coarse to fine")
        if self.clip_latent_frames is not None and self.clip_latent_frames < 1:
            raise ValueError(f"clip_latent_frames ({self.clip_latent_frames}) must be at least 1")
        if not 1 <= self.num_phi <= len(self.scales):
            raise ValueError(f"num_phi ({self.num_phi}) must be 1 to the number of scales")
        for name in ("ema_decay", "restart_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1)")
        if not 0 <= self.phi_ratio <= 1:
            raise ValueError(f"phi_ratio ({self.phi_ratio}) must lie in [0, 1]")
        if self.entropy_weight < 0 or self.entropy_temperature <= 0:
            raise ValueError(
                "entropy_weight must not be negative and entropy_temperature be positive"
            )
        if not 1 <= (self.entropy_group or 1) <= MAX_ENTROPY_GROUP:
            raise ValueError(
                f"entropy_group ({self.entropy_group}) must be 1 to {MAX_ENTROPY_GROUP} bits"
            )
        self._check_codes()

    def _check_codes(self) -> None:
        """The lookup, its size and its channels must fit each other."""
        if self.codebook_size > MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"codebook_size ({self.codebook_size}) must fit 32 bits: {MAX_CODEBOOK_SIZE}"
            )
        if (self.levels != ()) != (self.lookup == "fsq"):
            raise ValueError("levels belong to lookup fsq, which needs them, e.g. [8, 8, 8, 5]")
        of_vq = self.metric, self.learned_by, self.first_codes
        if self.lookup != "vq" and of_vq != ("l2", "ema", "data"):
            raise ValueError(
                f"metric, learned_by and first_codes belong to lookup vq, not to {self.lookup}"
            )
        if self.lookup == "fsq":
            if min(self.levels) < 3:
                raise ValueError(f"levels ({list(self.levels)}) must be at least 3 each; lfq has 2")
            if self.entropy_weight:
                raise ValueError("entropy_weight: fsq has no entropy term; it must be 0")
            self._check_shape(prod(self.levels), len(self.levels))
        elif self.lookup != "vq":
            self._check_shape(2**self.codebook_dim, self.codebook_dim)

    def _check_shape(self, size: int, dim: int) -> None:
        if (self.codebook_size, self.codebook_dim) != (size, dim):
            raise ValueError(
                f"codebook_size ({self.codebook_size}) and codebook_dim ({self.codebook_dim}) of "
                f"this {self.lookup} must be {size} and {dim}"
            )


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Critics that learn to tell clips from reconstructions while the tokenizer deceives them."""

    weight: float = setting(0.0, "weight of deceiving the critics; 0 leaves them out")
    kind: Literal["frames", "clips", "both"] = setting(
        "frames", "what a critic sees: single frames (2-D), clips (3-D), or one critic of each"
    )
    channels: int = setting(64, "channels of a critic's first layer; they double up to eight times")
    layers: int = setting(3, "times that a critic halves the grid; its patches grow with them")
    balance: Literal["fixed", "adaptive"] = setting(
        "fixed",
        "adaptive: the weight is a share of the factor at which deceiving moves the decoder's last "
        "layer as much as the reconstruction's error does",
    )
    max_balance: float = setting(1e4, "largest such factor")
    start_share: float = setting(0.2, "share of the training before the critics come in")
    ramp_share: float = setting(0.02, "share of the training over which the weight then grows")
    lecam: float = setting(0.0, "weight of holding verdicts to their running means (LeCAM)")
    lecam_decay: float = setting(0.99, "decay of these running means")

    def __post_init__(self) -> None:
        for name in ("weight", "max_balance", "lecam"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        if self.channels < 1 or not 1 <= self.layers <= 6:
            raise ValueError("layers: 1 to 6 layers of at least 1 channel are needed")
        for name in ("start_share", "ramp_share", "lecam_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1)")

    def weight_at(self, progress: float) -> float:
        """The weight at `progress` (0 to 1) of the training; 0 before the critics come in."""
        since = progress - self.start_share
        if since < 0:
            return 0.0
        return self.weight * min(1.0, since / self.ramp_share if self.ramp_share else 1.0)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the training losses; a weight of 0 leaves a loss out."""

    l1: float = setting(1.0, "weight of the mean absolute error, pixels in [-1, 1]")
    mse: float = setting(1.0, "weight of the mean squared error")
    temporal: float = setting(0.5, "weight of the absolute error of frame differences")
    ms_ssim: float = setting(0.0, "weight of 1 - structural similarity over several resolutions")
    lpips: float = setting(0.0, "weight of the distance in features of VGG-16, which needs files")
    quantizer: float = setting(1.0, "weight of the quantizer's loss, the mean over the scales")
    commitment: float = setting(0.25, "weight in it of the latents moving to their codes")
    latent_size: float = setting(0.01, "weight of the latents' mean square")
    discriminator: DiscriminatorConfig = section(DiscriminatorConfig, "the adversarial loss")

    def __post_init__(self) -> None:
        for name in (
            *("l1", "mse", "temporal", "ms_ssim", "lpips"),
            *("quantizer", "commitment", "latent_size"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")


@dataclass(frozen=True, kw_only=True)
class LpipsFiles:
    """Where the weights of LPIPS lie, which we may not ship, and which ones they must be."""

    vgg: str | None = setting(None, "state dict of torchvision's VGG-16, .safetensors or .pth")
    vgg_sha256: str | None = setting(None, "SHA-256 of that file, in hex")
    heads: str | None = setting(None, "the five linear heads of LPIPS 0.1, .safetensors or .pth")
    heads_sha256: str | None = setting(None, "SHA-256 of that file, in hex")


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


class NotFinite(UserError):
    """A clip for which a model gave NaN or infinity instead of latents."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row

    def __str__(self) -> str:
        return f"clip {self.row} of the batch: {self.reason}"

    @property
    def reason(self) -> str:
        return (
            "its latents are NaN or infinite: the tokenizer's weights are damaged, or its training "
            "diverged; copy or train it again"
        )


def _fitted(sides: Sequence[int], grid: tuple[int, int]) -> list[tuple[int, int]]:
    finest = sides[-1]
    return [(_share(side, finest, grid[0]), _share(side, finest, grid[1])) for side in sides]


def _share(side: int, finest: int, cells: int) -> int:
    return max(1, (2 * side * cells + finest) // (2 * finest))


_SMALL_CODES = QuantizerConfig(
    codebook_size=4096, codebook_dim=16, scales=(1, 2, 3, 4, 6, 8), num_phi=4
)
_BASE_CODES = QuantizerConfig(
    codebook_size=16384, codebook_dim=32, scales=(1, 2, 3, 4, 6, 8, 10, 13, 16), num_phi=4
)

PRESETS: dict[str, TokenizerConfig] = {
    "tiny": TokenizerConfig(),
    "small": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=4,
            temporal_patch=2,
            channels=(96, 192, 256),
            encoder_blocks=(1, 1, 2),
            decoder_blocks=(2, 2, 2),
        ),
        quantizer=_SMALL_CODES,
    ),
    "base": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=2,
            temporal_patch=1,
            channels=(128, 256, 384, 512),
            encoder_blocks=(2, 2, 2, 2),
            decoder_blocks=(3, 3, 3, 3),
        ),
        quantizer=_BASE_CODES,
    ),
    "tiny-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(patch=8, spatial_stride=8),
        quantizer=QuantizerConfig(scales=(1, 2, 4, 8)),
    ),
    "small-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=4,
            temporal_patch=2,
            spatial_stride=8,
            channels=(128, 256),
            encoder_blocks=(1, 2),
            decoder_blocks=(2, 2),
        ),
        quantizer=replace(_SMALL_CODES, scales=(1, 2, 3, 4, 6, 8, 10, 13, 16)),
    ),
    "base-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=2,
            temporal_patch=1,
            spatial_stride=8,
            channels=(128, 256, 512),
            encoder_blocks=(2, 2, 2),
            decoder_blocks=(3, 3, 3),
        ),
        quantizer=replace(_BASE_CODES, scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    ),
}
"""tiny: the demo, 64 x 64; small: for 128 x 128; base: for 256 x 256. A latent frame stands for 4
frames and a cell for 16 x 16 pixels, or 8 x 8 in those that end in s8."""
