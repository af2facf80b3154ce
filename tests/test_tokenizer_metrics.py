"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.metrics import (
    frechet_distance,
    mean_color,
    psnr,
    ssim,
)


def clips(seed=0, batch=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 2, 24, 20, 3), dtype=torch.uint8, generator=draw)


def test_psnr_is_taken_per_clip_from_its_mean_squared_error():
    frames = clips()
    off = frames.clone()
    off[0] = frames[0] ^ 1
    off[1] = torch.where(frames[1] < 128, frames[1] + 10, frames[1] - 10)
    values = psnr(off, frames)
    assert values[0] == pytest.approx(20 * np.log10(255))
    assert values[1] == pytest.approx(20 * np.log10(25.5))
    assert values[2] == torch.inf


def test_the_mean_color_is_one_color_per_clip_and_the_best_such():
    frames = clips()
    flat = mean_color(frames)
    assert torch.equal(flat[:, 0, 0, 0], flat[:, 1, 5, 7])
    assert (psnr(flat, frames) > psnr((flat.int() + 20).clamp(max=255).byte(), frames)).all()


def test_ssim_equals_its_definition_at_one_window():
    frames, other = clips(0)[:1, :1, :11, :11], clips(1)[:1, :1, :11, :11]
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    expected = []
    for channel in range(3):
        a = frames[0, 0, :, :, channel].numpy().astype(np.float64)
        b = other[0, 0, :, :, channel].numpy().astype(np.float64)
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 2.55**2, 7.65**2
        expected.append(
            (2 * mean_a * mean_b + c1)
            / (mean_a**2 + mean_b**2 + c1)
            * (2 * covariance + c2)
            / (var_a + var_b + c2)
        )
    assert ssim(frames, other).item() == pytest.approx(np.mean(expected))


def test_equal_clips_have_ssim_1_and_noise_lowers_it():
    frames = clips()
    torch.testing.assert_close(ssim(frames, frames), torch.ones(3, dtype=torch.float64))
    assert (ssim(clips(1), frames) < 0.2).all()


def test_the_frechet_distance_of_gaussians_with_diagonal_covariances_is_as_computed_by_hand():
    random = np.random.default_rng(0)
    a = random.standard_normal((200_000, 2)) * [1, 2] + [0, 0]
    b = random.standard_normal((200_000, 2)) * [3, 2] + [1, 0]
    assert frechet_distance(a, b) == pytest.approx(1 + (3 - 1) ** 2, rel=0.02)


def test_the_frechet_distance_to_itself_is_zero_even_with_few_samples():
    features = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(features, features + 1) == pytest.approx(32, rel=1e-4)


def test_a_frechet_distance_needs_two_samples():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
