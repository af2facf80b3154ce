"""A tokenizer begins from data: the best linear code of blocks, and k-means of its latents."""

from __future__ import annotations

import pytest
import torch

from pipeline.digits import render_clips
from tokenizer import beginning
from tokenizer.autoencoder3d import principal_components
from tokenizer.beginning import begin
from tokenizer.config import TokenizerConfig
from tokenizer.metrics import psnr
from tokenizer.model import Tokenizer, signed, unsigned


def clips(count: int) -> torch.Tensor:
    frames = [frames for frames, _ in render_clips(count, seed=1, fps=8, num_frames=9)]
    return torch.stack([torch.from_numpy(each) for each in frames])


def test_principal_components_are_those_of_an_exact_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 6, generator=generator) * torch.tensor([9.0, 7, 5, 3, 2, 1])
    vectors = mixed @ torch.linalg.qr(torch.randn(40, 40, generator=generator))[0][:6]
    vectors -= vectors.mean(dim=0)
    components, size = principal_components(vectors, 3, generator)
    _, _, exact = torch.linalg.svd(vectors, full_matrices=False)
    agreement = (components @ exact[:3].T).abs()
    torch.testing.assert_close(agreement, torch.eye(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(size, (vectors @ exact[:3].T).square().mean().sqrt())


@pytest.mark.slow
def test_before_any_step_the_latents_hold_the_clips_and_the_codes_most_of_them() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig())
    frames = clips(48)
    untouched = psnr(tokenizer.decode(tokenizer.encode(frames), _schedule(tokenizer)), frames)
    begin(tokenizer, [signed(frames)], torch.Generator().manual_seed(0))
    unquantized = unsigned(tokenizer.autoencoder.decode(tokenizer.encode_latents(signed(frames))))
    coded = tokenizer.decode(tokenizer.encode(frames), _schedule(tokenizer))
    assert psnr(unquantized, frames).mean() > 21
    assert psnr(coded, frames).mean() > untouched.mean() + 4
    assert bool(tokenizer.quantizer.codebook.is_initialised)


def test_the_beginning_follows_from_the_frames_and_the_generator() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        tokenizer = Tokenizer(TokenizerConfig())
        begin(tokenizer, [signed(clips(12))], torch.Generator().manual_seed(3))
        weights.append(tokenizer.fingerprint)
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_beginning_in_chunks_and_from_fewer_blocks_is_about_as_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = clips(24)
    found = []
    for size, most in ((24, 1 << 15), (5, 1 << 15), (5, 800)):
        monkeypatch.setattr(beginning, "MOST_BLOCKS", most)
        torch.manual_seed(0)
        tokenizer = Tokenizer(TokenizerConfig())
        begin(tokenizer, signed(frames).split(size), torch.Generator().manual_seed(0))
        decoded = tokenizer.decode(tokenizer.encode(frames), _schedule(tokenizer))
        found.append(float(psnr(decoded, frames).mean()))
    assert found[1] == pytest.approx(found[0], abs=0.3)
    assert found[2] == pytest.approx(found[0], abs=1.0)


def _schedule(tokenizer: Tokenizer):
    return tokenizer.schedule_for(9, 64, 64)
