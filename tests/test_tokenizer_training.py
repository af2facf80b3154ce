"""A training step of the tokenizer: what learns from what, exact resume, ranks that agree."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.beginning import begin
from tokenizer.config import TokenizerConfig
from tokenizer.health import codebook_health
from tokenizer.learner import Learner, check_size
from tokenizer.loss_config import DiscriminatorConfig, LossConfig
from tokenizer.losses import tokenizer_losses
from tokenizer.model import Tokenizer, signed, unsigned
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from tokenizer.similarity import ms_ssim

SMALL = TokenizerConfig(
    autoencoder=AutoencoderConfig(channels=(16,)),
    quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=2),
)


ADVERSARIAL = replace(
    SMALL,
    loss=LossConfig(
        ms_ssim=0.5,
        discriminator=DiscriminatorConfig(
            weight=0.5, kind="both", channels=8, layers=2, balance="adaptive", lecam=0.1
        ),
    ),
)


def learner(config=SMALL):
    """A new tokenizer that has begun from clips, and what it learns with."""
    return copy.deepcopy(begun(config))


@cache
def begun(config):
    torch.manual_seed(0)
    made = Learner(Tokenizer(config))
    begin(made.tokenizer, [clips(999, batch=32)], torch.Generator().manual_seed(0))
    return made


def clips(seed, batch=4, num_frames=9):
    """Bright squares that move over a dark background."""
    draw = torch.Generator().manual_seed(seed)
    frames = torch.full((batch, num_frames, 32, 32, 3), 20, dtype=torch.uint8)
    for clip in frames:
        top, left, color = (int(torch.randint(12, (), generator=draw)) for _ in range(3))
        for t, frame in enumerate(clip):
            frame[top + t : top + t + 12, left : left + 12, color % 3] = 220
    return signed(frames)


def train(model, steps, start=0, num_frames=9):
    """Plain training from step `start` to `steps`; each step's randomness has its own key."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        output = model(clips(step, num_frames=num_frames), step / steps, generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return output


def step(model, progress=0.9, seed=0, num_frames=9):
    return model(clips(seed, num_frames=num_frames), progress, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("progress", "num_frames"), [(0.0, 1), (0.2, 5), (0.9, 9), (0.9, 1), (0.0, 9)]
)
@pytest.mark.parametrize("config", [SMALL, ADVERSARIAL])
def test_every_parameter_gets_a_gradient_in_every_step(config, progress, num_frames):
    """Those of critics from their start on."""
    model = learner(config)
    step(model, progress, num_frames=num_frames).loss.backward()
    without = {name for name, each in model.named_parameters() if each.grad is None}
    critics = {name for name, _ in model.named_parameters() if name.startswith("discriminator.")}
    assert without == (critics if progress < config.loss.discriminator.start_share else set())


def test_before_their_start_the_critics_change_nothing_and_stay_as_they_are():
    with_critics, without = (
        learner(ADVERSARIAL),
        learner(replace(SMALL, loss=LossConfig(ms_ssim=0.5))),
    )
    outputs = [step(model, progress=0.1) for model in (with_critics, without)]
    assert outputs[0].loss == outputs[1].loss
    assert outputs[0].terms.keys() == outputs[1].terms.keys()
    outputs[0].loss.backward()
    critics = with_critics.discriminator
    assert all(each.grad is None for each in critics.parameters())
    assert critics.real_mean.abs().max() == 0


def test_critics_and_tokenizer_have_the_gradients_of_their_own_loss_only():
    models = [learner(ADVERSARIAL) for _ in range(3)]
    step(models[0]).loss.backward()
    frames = clips(0)
    tokenizer, critics = models[1].tokenizer, models[1].discriminator
    latents = tokenizer.autoencoder.encode(frames)
    quantized = tokenizer.quantizer(latents, tokenizer.schedule_for(9, 32, 32))
    reconstruction = tokenizer.autoencoder.decode(quantized.latents)
    critics.loss(frames, reconstruction)[0].backward()
    assert all(each.grad is None for each in tokenizer.parameters())
    found = dict(models[0].discriminator.named_parameters())
    for name, expected in critics.named_parameters():
        torch.testing.assert_close(found[name].grad, expected.grad)
    weight = step(models[2]).terms["deception_weight"]
    losses = tokenizer_losses(ADVERSARIAL.loss, frames, reconstruction, latents, quantized)
    (losses.total() + weight * critics.deception(reconstruction)).backward()
    found = dict(models[0].tokenizer.named_parameters())
    for name, expected in tokenizer.named_parameters():
        torch.testing.assert_close(found[name].grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = replace(SMALL, loss=LossConfig(ms_ssim=0.5, lpips=2.0, latent_size=0.1))
    torch.manual_seed(0)
    model = Learner(Tokenizer(config), lpips=lambda a, b: (a - b).abs().amax(dim=(1, 2, 3, 4)))
    begin(model.tokenizer, [clips(999, batch=32)], torch.Generator().manual_seed(0))
    frames = clips(0)
    tokenizer = copy.deepcopy(model.tokenizer)
    output = step(model)
    with torch.no_grad():
        latents = tokenizer.autoencoder.encode(frames)
        quantized = tokenizer.quantizer(latents, tokenizer.schedule_for(9, 32, 32))
        error = tokenizer.autoencoder.decode(quantized.latents) - frames
    expected = {
        "l1": (1.0, error.abs().mean()),
        "mse": (1.0, (error**2).mean()),
        "temporal": (0.5, (error[:, :, 1:] - error[:, :, :-1]).abs().mean()),
        "ms_ssim": (0.5, 1 - ms_ssim(frames + error, frames).mean()),
        "lpips": (2.0, error.abs().amax(dim=(1, 2, 3, 4)).mean()),
        "quantizer": (1.0, quantized.reconstruction_loss),
        "commitment": (0.25, quantized.commitment_loss),
        "latent_size": (0.1, (latents**2).mean()),
    }
    for name, (_, term) in expected.items():
        torch.testing.assert_close(output.terms[name], term)
    total = sum(weight * float(term) for weight, term in expected.values())
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-5)


def test_a_loss_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="needs the distance"):
        Learner(Tokenizer(replace(SMALL, loss=LossConfig(lpips=1.0))))
    for loss, message in (
        (LossConfig(ms_ssim=1), "loss.ms_ssim: frames of 64 x 8 .* at least 11 pixels"),
        (LossConfig(lpips=1), "loss.lpips: .* at least 16 pixels"),
        (
            LossConfig(discriminator=DiscriminatorConfig(weight=1, layers=4)),
            "loss.discriminator: .* at least 16 pixels",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_size(loss, 64, 8)
    check_size(LossConfig(), 1, 1)


def test_in_bfloat16_the_codes_and_losses_are_still_float32():
    model = learner(ADVERSARIAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = step(model)
    assert output.loss.dtype == torch.float32
    assert all(each.dtype == torch.float32 for each in output.terms.values())
    full = step(learner(ADVERSARIAL))
    assert float(output.loss.detach()) == pytest.approx(float(full.loss.detach()), rel=0.05)
    output.loss.backward()


@pytest.mark.slow
def test_training_lowers_the_error_of_held_out_clips_and_uses_the_codebook():
    quantizer = QuantizerConfig(codebook_size=128, codebook_dim=8, scales=(1, 2), num_phi=1)
    model = learner(replace(SMALL, quantizer=quantizer))
    tokenizer = model.tokenizer
    frames = unsigned(clips(1000, batch=16))

    def error() -> float:
        decoded = tokenizer.decode(tokenizer.encode(frames), tokenizer.schedule_for(9, 32, 32))
        return float((decoded.float() - frames.float()).abs().mean())

    before = error()
    train(model, 90)
    assert error() < 0.9 * before
    assert codebook_health(tokenizer.encode(frames), 128).usage >= 0.4


def test_images_train_with_the_same_weights_as_clips():
    output = train(learner(), 30, num_frames=1)
    assert "temporal" not in output.terms
    assert output.terms["psnr"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, ADVERSARIAL])
def test_a_training_that_is_resumed_twice_is_the_undisturbed_one(config):
    states = []
    for breaks in ((), (2, 5)):
        model = learner(config)
        for number in range(7):
            if number in breaks:
                state = copy.deepcopy(model.state_dict())
                model = Learner(Tokenizer(config))
                model.load_state_dict(state)
            output = step(model, number / 7, number)
            parameters = list(model.parameters())
            gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients):
                    if gradient is not None:  # critics have none before their start
                        parameter -= 0.01 * gradient
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_randomness_comes_from_the_generator_alone():
    outcomes = []
    for seed in (0, 1):
        model = learner(ADVERSARIAL)
        torch.manual_seed(seed)
        outcomes.append((step(model).loss, model.tokenizer.quantizer.codebook.weight))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes))


@pytest.mark.multiprocess
def test_two_ranks_with_different_clips_and_draws_keep_one_codebook(two_ranks):
    states = two_ranks.run(_train_as_rank)
    names = [name for name in states[0] if "codebook" in name]
    assert len(names) == 6
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)


def _train_as_rank():
    model = learner()
    for number in range(8):
        step(model, seed=100 * torch.distributed.get_rank() + number)
    return model.state_dict()
