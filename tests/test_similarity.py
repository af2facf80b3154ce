"""Structural similarity over several resolutions: its definition, its gradient, small frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.similarity import WEIGHTS, ms_ssim, resolutions


def noisy(size: tuple[int, int], noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips of two frames each, smooth patterns, and the same with noise; float64."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2 * 2, 3, 8, 8, generator=draw, dtype=torch.float64) * 2 - 1
    frames = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    frames = frames.view(2, 2, 3, *size).movedim(2, 1)
    noisy = frames + noise * torch.randn(frames.shape, generator=draw, dtype=torch.float64)
    return frames, noisy


def slowly(a: np.ndarray, b: np.ndarray, levels: int) -> float:
    """MS-SSIM of two pictures [c, h, w] in [-1, 1], window by window."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    powers = np.array(WEIGHTS[:levels]) * sum(WEIGHTS) / sum(WEIGHTS[:levels])
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    product = 1.0
    for level in range(levels):
        contrasts, whole = [], []
        for x, y in zip(a, b):
            for top in range(x.shape[0] - 10):
                for left in range(x.shape[1] - 10):
                    p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
                    mean_p, mean_q = (window * p).sum(), (window * q).sum()
                    var_p = (window * (p - mean_p) ** 2).sum()
                    var_q = (window * (q - mean_q) ** 2).sum()
                    covariance = (window * (p - mean_p) * (q - mean_q)).sum()
                    contrast = (2 * covariance + c2) / (var_p + var_q + c2)
                    luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
                    contrasts.append(contrast)
                    whole.append(contrast * luminance)
        product *= np.mean(whole if level + 1 == levels else contrasts) ** powers[level]
        a, b = (
            z[:, : z.shape[1] // 2 * 2, : z.shape[2] // 2 * 2]
            .reshape(3, z.shape[1] // 2, 2, z.shape[2] // 2, 2)
            .mean(axis=(2, 4))
            for z in (a, b)
        )
    return float(product)


@pytest.mark.parametrize("size", [(16, 13), (25, 27)])
def test_it_is_what_the_definition_says(size: tuple[int, int]) -> None:
    frames, other = noisy(size, 0.2)
    found = ms_ssim(other, frames)
    for clip in range(2):
        expected = [
            slowly(frames[clip, :, t].numpy(), other[clip, :, t].numpy(), resolutions(*size))
            for t in range(2)
        ]
        assert float(found[clip]) == pytest.approx(np.mean(expected), rel=1e-9)


def test_as_many_resolutions_are_used_as_the_window_fits_into() -> None:
    assert [resolutions(side, 500) for side in (11, 21, 22, 44, 88, 175, 176, 999)] == [
        *(1, 1, 2, 3, 4, 4, 5, 5)
    ]
    with pytest.raises(ValueError, match="at least 11 pixels, not 10"):
        resolutions(64, 10)


def test_equal_clips_have_one_and_noise_lowers_it_step_by_step() -> None:
    values = [float(ms_ssim(b, a).mean()) for a, b in (noisy((64, 64), n) for n in (0, 0.1, 0.5))]
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2] > 0


def test_the_gradient_is_finite_even_where_contrast_is_opposite() -> None:
    frames, _ = noisy((32, 32), 0)
    for reference in (frames, -frames, torch.zeros_like(frames)):
        other = frames.clone().requires_grad_(True)
        (1 - ms_ssim(other, reference).mean()).backward()
        assert other.grad is not None
        assert torch.isfinite(other.grad).all()


def test_following_the_gradient_raises_it() -> None:
    frames, other = noisy((32, 32), 0.3)
    other.requires_grad_(True)
    before = ms_ssim(other, frames).mean()
    (gradient,) = torch.autograd.grad(before, [other])
    after = ms_ssim(other + gradient / gradient.norm(), frames).mean()
    assert float(after.detach()) > float(before.detach()) + 0.01
