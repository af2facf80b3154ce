"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer import metrics, similarity
from tokenizer.metrics import (
    frame_psnr,
    mean_color,
    ms_ssim,
    psnr,
    ssim,
    temporal_psnr,
)


def clips(seed=0, batch=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 2, 24, 20, 3), dtype=torch.uint8, generator=draw)


def test_psnr_is_the_mean_over_frames_of_the_psnr_of_each():
    frames = clips()
    off = frames.clone()
    off[0, 0] = frames[0, 0] ^ 1
    off[0, 1] = torch.where(frames[0, 1] < 128, frames[0, 1] + 10, frames[0, 1] - 10)
    expected = [20 * np.log10(255), 20 * np.log10(25.5)]
    assert frame_psnr(off, frames)[0].tolist() == pytest.approx(expected)
    values = psnr(off, frames)
    assert values[0] == pytest.approx(np.mean(expected))
    assert values[1] == values[2] == 100


def test_temporal_psnr_sees_changes_of_the_error_and_not_the_error():
    frames = clips()
    steady = (frames.int() // 2 + 30).byte()
    assert (temporal_psnr(steady, (steady.int() - 9).byte()) == 100).all()
    flickering = steady.clone()
    flickering[:, 1] += 3
    expected = 20 * np.log10(255 / 3)
    assert temporal_psnr(flickering, steady).tolist() == pytest.approx([expected] * 3)
    with pytest.raises(ValueError, match="single frame"):
        temporal_psnr(frames[:, :1], frames[:, :1])


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


def test_structure_compared_a_few_frames_at_a_time_is_that_of_all_at_once(monkeypatch):
    frames, reference = clips(), clips(seed=1)
    signals = [each.movedim(-1, 1).double() for each in (frames, reference)]
    for at_once in (1, 2 * 24 * 20 * 3, 1 << 30):
        monkeypatch.setattr(metrics, "VALUES_AT_ONCE", at_once)
        for measure, definition in ((ssim, similarity.ssim), (ms_ssim, similarity.ms_ssim)):
            found = measure(frames, reference)
            assert torch.allclose(found, definition(*signals, value_range=255.0), rtol=1e-12)
