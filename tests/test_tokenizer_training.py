"""A training step of the tokenizer: its phases, exact resume, and ranks that agree."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from tokenizer.config import AutoencoderConfig, LossConfig, QuantizerConfig, TokenizerConfig
from tokenizer.health import codebook_health
from tokenizer.model import Tokenizer, signed, unsigned

SMALL = TokenizerConfig(
    autoencoder=AutoencoderConfig(channels=(16,)),
    quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=2),
)


def tokenizer(config=SMALL):
    torch.manual_seed(0)
    return Tokenizer(config)


def clips(seed, batch=4, num_frames=9):
    """Bright squares that move over a dark background."""
    draw = torch.Generator().manual_seed(seed)
    frames = torch.full((batch, num_frames, 32, 32, 3), 20, dtype=torch.uint8)
    for clip in frames:
        top, left, color = (int(torch.randint(12, (), generator=draw)) for _ in range(3))
        for t, frame in enumerate(clip):
            frame[top + t : top + t + 12, left : left + 12, color % 3] = 220
    return signed(frames)


def train(model, steps, start=0, total=None, num_frames=9):
    """Plain training from step `start` to `steps`; each step's randomness has its own key."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        output = model(clips(step, num_frames=num_frames), step / (total or steps), generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return output


def test_the_codebook_is_made_after_the_unquantized_share_and_then_follows():
    model = tokenizer()
    codebook = model.quantizer.codebook
    train(model, 4, total=20)
    assert not codebook.is_initialised
    assert int(codebook.num_observed) == 4 * 16
    generator = torch.Generator().manual_seed(1)
    model(clips(1), 0.2, generator)
    assert codebook.is_initialised
    first = codebook.weight.clone()
    model(clips(2), 0.3, generator)
    assert not torch.equal(codebook.weight, first)


@pytest.mark.parametrize("num_frames", [1, 5, 9])
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_every_parameter_gets_a_gradient_in_every_phase(num_frames, progress):
    model = tokenizer()
    frames = clips(0, num_frames=num_frames)
    model(frames, progress, torch.Generator().manual_seed(0)).loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_training_lowers_the_error_of_held_out_clips_and_uses_the_codebook():
    torch.manual_seed(0)
    quantizer = QuantizerConfig(codebook_size=128, codebook_dim=8, scales=(1, 2), num_phi=1)
    model = Tokenizer(TokenizerConfig(autoencoder=SMALL.autoencoder, quantizer=quantizer))
    frames = unsigned(clips(1000, batch=16))

    def error() -> float:
        decoded = model.decode(model.encode(frames), model.schedule_for(9, 32, 32))
        return float((decoded.float() - frames.float()).abs().mean())

    train(model, 30, total=120)
    before = error()
    train(model, 120, start=30)
    assert error() < 0.9 * before
    assert codebook_health(model.encode(frames), 128).usage >= 0.4


def test_images_train_with_the_same_weights_as_clips():
    output = train(tokenizer(), 30, num_frames=1)
    assert "temporal" not in output.terms
    assert output.terms["psnr"] > 10


@pytest.mark.parametrize("stopped_at", [2, 10])
def test_a_resumed_training_is_the_undisturbed_one(stopped_at):
    states = []
    for breaks in ((), (stopped_at,)):
        model = tokenizer()
        for step in range(12):
            if step in breaks:
                state = copy.deepcopy(model.state_dict())
                model = Tokenizer(SMALL)
                model.load_state_dict(state)
            output = model(clips(step), step / 12, torch.Generator().manual_seed(step))
            gradients = torch.autograd.grad(output.loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter -= 0.01 * gradient
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_randomness_comes_from_the_generator_alone():
    outcomes = []
    for seed in (0, 1):
        model = tokenizer()
        torch.manual_seed(seed)
        model(clips(0), 0.9, torch.Generator().manual_seed(5))
        outcomes.append(model.quantizer.codebook.weight)
    assert torch.equal(*outcomes)


def test_nobody_is_reversed_when_the_share_is_zero():
    forwards = TokenizerConfig(
        autoencoder=SMALL.autoencoder, quantizer=SMALL.quantizer, loss=LossConfig(reversed_share=0)
    )
    losses = [
        tokenizer(forwards)(clips(0), 0.0, torch.Generator().manual_seed(seed)).terms["l1"]
        for seed in range(3)
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.multiprocess
def test_two_ranks_with_different_clips_and_draws_keep_one_codebook(tmp_path):
    torch.multiprocessing.spawn(_train_as_rank, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    names = [name for name in states[0] if "codebook" in name]
    assert len(names) == 6
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)


def _train_as_rank(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = tokenizer()
    for step in range(8):
        generator = torch.Generator().manual_seed(100 * rank + step)
        model(clips(100 * rank + step), step / 8, generator)
    torch.save(model.state_dict(), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()
