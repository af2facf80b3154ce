"""Settings of the quantizer, torch-free: latents to codes and back, and how codes learn."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from tokenizer.settings import setting

MAX_CODEBOOK_SIZE = 1 << 32
"""Ids are stored as uint32 at most."""
MAX_CODEBOOK_DIM = 1 << 12
MAX_PHI = 1 << 10
MAX_ENTROPY_GROUP = 14


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
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size ({self.codebook_size}) must be at least 2 codes")
        if not 1 <= self.codebook_dim <= MAX_CODEBOOK_DIM:
            raise ValueError(
                f"codebook_dim ({self.codebook_dim}) must be 1 to {MAX_CODEBOOK_DIM} channels"
            )
        for name in ("scales", "clip_scales"):
            sides = getattr(self, name)
            if sides is None:
                continue
            if not sides or min(sides) < 1 or list(sides) != sorted(sides):
                raise ValueError(f"{name} ({list(sides)}) must grow from coarse to fine")
        if self.clip_latent_frames is not None and self.clip_latent_frames < 1:
            raise ValueError(f"clip_latent_frames ({self.clip_latent_frames}) must be at least 1")
        if not 1 <= self.num_phi <= MAX_PHI:
            raise ValueError(f"num_phi ({self.num_phi}) must be 1 to {MAX_PHI}; phi_ratio 0: none")
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
