"""How good a reconstruction is.

Conventions, because figures differ otherwise: PSNR is per clip, from the mean squared error of all
its uint8 pixels, and then averaged over clips. SSIM is per frame and channel with a Gaussian window
of 11 pixels (Wang et al. 2004), averaged. A Frechet distance is named by its features.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


def psnr(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each clip in dB, float64; infinite for equal clips."""
    error = (frames.double() - reference.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error)


def mean_color(frames: UInt8[Tensor, "b t h w c"]) -> UInt8[Tensor, "b t h w c"]:
    """Each clip as one flat colour: the reconstruction that knows nothing else."""
    flat = frames.double().mean(dim=(1, 2, 3), keepdim=True).round().to(torch.uint8)
    return flat.expand_as(frames)


def ssim(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """Structural similarity of each clip, up to 1; sides of at least 11 pixels."""
    batch_size = len(frames)
    a, b = (x.permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None].double() for x in (frames, reference))
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a**2
    variance_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).view(batch_size, -1).mean(dim=1)


def frechet_distance(
    features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]
) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features, in float64.

    The trace of the root of the product of covariances is taken from eigenvalues, so a singular
    covariance (fewer samples than features) does no harm.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError("a Frechet distance needs at least two samples of each set")
    a, b = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    covariance_a = np.atleast_2d(np.cov(a, rowvar=False))
    covariance_b = np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(max(distance + traces - 2 * np.sqrt(product.clip(min=0)).sum(), 0.0))


def _windowed(images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
    offsets = torch.arange(-5, 6, dtype=images.dtype, device=images.device)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    images = functional.conv2d(images, window.view(1, 1, 11, 1))
    return functional.conv2d(images, window.view(1, 1, 1, 11))
