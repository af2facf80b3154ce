"""Scores of a tokenizer against what follows from its codes by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.beginning import begin
from tokenizer.config import TokenizerConfig
from tokenizer.extractors import RandomFeatures
from tokenizer.frechet import frechet_distance
from tokenizer.health import effective_bits
from tokenizer.metrics import mean_color, psnr, ssim
from tokenizer.model import Tokenizer, signed
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import image_and_clip
from training.scoring import Score

SHAPE = (5, 32, 32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        autoencoder=AutoencoderConfig(channels=(16,)),
        quantizer=QuantizerConfig(codebook_size=32, codebook_dim=6, scales=(1, 2), num_phi=2),
    )
    model = Tokenizer(config)
    begin(model, [signed(clips(9, 24))], torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def clips(seed: int, batch: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Smooth colours that change over time."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 2, 3, 3, generator=draw)
    full = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")
    return (full * 255).byte().permute(0, 2, 3, 4, 1).contiguous()


def scored(tokenizer: Tokenizer, frames: torch.Tensor, batch_size: int) -> Score:
    score = Score(tokenizer, tuple(frames.shape[1:4]), [RandomFeatures()])
    for part in frames.split(batch_size):
        score.add(part)
    return score


def test_a_level_is_a_place_in_the_pyramids() -> None:
    assert image_and_clip(3, (1, 2, 4)).levels == ((0, 3), (1, 4), (2, 5))
    assert image_and_clip(3, (1, 4), (1, 2, 4)).levels == ((0, 2), (1, 3), (4,))
    assert image_and_clip(1, (4,)).levels == ((0,),)


def test_figures_are_those_of_decoding_a_level_at_a_time(tokenizer: Tokenizer) -> None:
    frames = clips(1, 7)
    report = scored(tokenizer, frames, batch_size=3).report()
    schedule = tokenizer.schedule_for(*SHAPE)
    codes = tokenizer.encode(frames)
    for count, after in enumerate(report["after_levels"], start=1):
        decoded = tokenizer.decode(codes, schedule, count)
        assert after["num_scales"] == count
        assert after["psnr"] == pytest.approx(float(psnr(decoded, frames).mean()), abs=1e-3)
        assert after["ssim"] == pytest.approx(float(ssim(decoded, frames).mean()), abs=1e-5)
    assert report["psnr"] == report["after_levels"][-1]["psnr"]
    assert np.mean(report["psnr_by_frame"]) == pytest.approx(report["psnr"], abs=1e-3)
    flat = float(psnr(mean_color(frames), frames).mean())
    assert report["psnr_mean_color"] == pytest.approx(flat)
    assert report["lpips"] is None


def test_nominal_and_effective_bits_are_counted_by_hand(tokenizer: Tokenizer) -> None:
    frames = clips(2, 6)
    report = scored(tokenizer, frames, batch_size=4).report()
    codes = tokenizer.encode(frames).numpy()
    pixels = math.prod(SHAPE)
    coarse, fine = codes[:, [0, 5]], np.delete(codes, [0, 5], axis=1)  # 1 + 4, 1 + 4 codes
    nominal = effective = 0.0
    for part, after in zip((coarse, fine), report["after_levels"]):
        _, counts = np.unique(part, return_counts=True)
        nominal += part.shape[1] * 5
        effective += part.shape[1] * effective_bits(torch.from_numpy(counts), 32)
        assert after["nominal_bits_per_pixel"] == pytest.approx(nominal / pixels)
        assert after["effective_bits_per_pixel"] == pytest.approx(effective / pixels)
    first = report["levels"][0]
    assert first["num_tokens"] == 12
    assert first["usage"] == len(np.unique(coarse)) / 32
    assert first["num_dead"] == 32 - len(np.unique(coarse))
    assert first["perplexity"] == pytest.approx(2 ** first["entropy_bits"])


def test_a_residual_is_what_a_level_leaves_of_the_latents(tokenizer: Tokenizer) -> None:
    frames = clips(3, 5)
    report = scored(tokenizer, frames, batch_size=2).report()
    latents = tokenizer.encode_latents(signed(frames))
    schedule = tokenizer.schedule_for(*SHAPE)
    codes = tokenizer.encode(frames)
    left = [1.0]
    for count, level in enumerate(report["levels"], start=1):
        partial = tokenizer.quantizer.decode(codes, schedule, count)
        expected = float((latents - partial).square().sum() / latents.square().sum())
        assert level["residual"] == pytest.approx(expected, rel=1e-3)
        assert level["residual"] < left[-1]
        left.append(level["residual"])


def test_the_distance_is_that_of_all_features_at_once(tokenizer: Tokenizer) -> None:
    frames = clips(4, 9)
    report = scored(tokenizer, frames, batch_size=4).report()
    extractor = RandomFeatures()
    decoded = tokenizer.decode(tokenizer.encode(frames), tokenizer.schedule_for(*SHAPE))
    found = report["frechet"]["FD-random3d-0"]
    expected = frechet_distance(extractor(decoded), extractor(frames))
    assert found["decoded"] == pytest.approx(expected, rel=1e-3)
    assert found["num_samples"] == 9
    assert 0 < found["decoded"] < found["mean_color"]


def test_images_and_small_clips_have_no_figures_that_do_not_exist(tokenizer: Tokenizer) -> None:
    report = scored(tokenizer, clips(5, 3, (1, 16, 16)), batch_size=2).report()
    assert report["temporal_psnr"] is None
    assert report["psnr"] > 0
    assert len(report["psnr_by_frame"]) == 1


def test_speed_is_told_for_both_directions(tokenizer: Tokenizer) -> None:
    speed = scored(tokenizer, clips(6, 6), batch_size=2).report()["clips_per_second"]
    assert set(speed) == {"encode", "decode", "both"}
    assert min(speed.values()) > 0
