"""Structural similarity over several resolutions, differentiable: a loss and a metric.

    similarity = ms_ssim(frames, reference)          # float [b, c, t, h, w] in [-1, 1] -> [b]

Every frame is compared for itself (Wang, Simoncelli and Bovik 2003): contrast and structure at each
resolution, luminance at the coarsest, each mean to the power of its weight, multiplied. Where a
side is too short for five resolutions, as many as fit are taken and their weights scaled to sum to
that of all five, so small clips have a value as well; it is not comparable to one of another size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WINDOW = 11
SIGMA = 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the resolutions, from fine to coarse; they sum to 1.0001, as published."""

_LEAST = 1e-6  # of a mean contrast: below it a power has no useful gradient


def ms_ssim(
    frames: Float[Tensor, "b c t h w"],
    reference: Float[Tensor, "b c t h w"],
    value_range: float = 2.0,
) -> Float[Tensor, " b"]:
    """Mean similarity of the frames of each clip, up to 1, in the dtype of `frames`.

    `value_range` is the largest possible difference of two pixels. ValueError when a side has fewer
    than 11 pixels.
    """
    num_resolutions = resolutions(*frames.shape[3:])
    a, b = (each.movedim(2, 1).flatten(0, 1) for each in (frames, reference))
    used = torch.tensor(WEIGHTS[:num_resolutions], dtype=torch.float64)
    powers = (used * (sum(WEIGHTS) / used.sum())).tolist()
    similarity = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for index, power in enumerate(powers):
        is_last = index + 1 == num_resolutions
        luminance, contrast = _similarities(a, b, value_range)
        factor = (luminance * contrast if is_last else contrast).flatten(1).mean(dim=1)
        similarity = similarity * factor.clamp(min=_LEAST) ** power
        if not is_last:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return similarity.view(len(frames), -1).mean(dim=1)


def ssim(
    frames: Float[Tensor, "b c t h w"],
    reference: Float[Tensor, "b c t h w"],
    value_range: float = 2.0,
) -> Float[Tensor, " b"]:
    """Similarity at full resolution alone (Wang et al. 2004); otherwise as `ms_ssim`."""
    resolutions(*frames.shape[3:])
    a, b = (each.movedim(2, 1).flatten(0, 1) for each in (frames, reference))
    luminance, contrast = _similarities(a, b, value_range)
    return (luminance * contrast).view(len(frames), -1).mean(dim=1)


def resolutions(height: int, width: int) -> int:
    """How many of the five resolutions the window fits into; ValueError when none."""
    side = min(height, width)
    if side < WINDOW:
        raise ValueError(
            f"structural similarity needs sides of at least {WINDOW} pixels, not {side}"
        )
    return min(len(WEIGHTS), 1 + (side // WINDOW).bit_length() - 1)


def _similarities(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], value_range: float
) -> tuple[Float[Tensor, "n c h2 w2"], Float[Tensor, "n c h2 w2"]]:
    """Luminance, and contrast times structure, where the whole window fits."""
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    mean_a, mean_b = _windowed(a), _windowed(b)
    variances = _windowed(a * a) - mean_a**2 + _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _windowed(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Weighted means over a Gaussian window, along one side and then the other."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = window / window.sum()
    planes = images.flatten(0, 1)[:, None]
    planes = functional.conv2d(planes, window.view(1, 1, WINDOW, 1))
    planes = functional.conv2d(planes, window.view(1, 1, 1, WINDOW))
    return planes.view(*images.shape[:2], *planes.shape[2:])
