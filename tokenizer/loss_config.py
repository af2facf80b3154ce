"""Settings of what a tokenizer learns by, torch-free: losses, critics, files of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.settings import section, setting


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
