"""Critics: who learns from which loss, what LeCAM holds on to, and how two losses are balanced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizer.discriminator import Critic, Discriminator, balance
from tokenizer.loss_config import DiscriminatorConfig

SMALL = DiscriminatorConfig(weight=1.0, channels=8, layers=2)
BOTH = DiscriminatorConfig(weight=1.0, channels=8, layers=2, kind="both", lecam=0.1)


def discriminator(config: DiscriminatorConfig = SMALL) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(config)


def clips(seed: int, num_frames: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, num_frames, 16, 16, generator=draw) * 2 - 1


def test_the_hinge_loss_is_what_the_definition_says() -> None:
    made = discriminator()
    real, fake = clips(0), clips(1)
    (a,), (b,) = made(real), made(fake)
    expected = 0.5 * ((1 - a).clamp(min=0).mean() + (1 + b).clamp(min=0).mean())
    loss, terms = made.loss(real, fake)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["critic_real"], a.mean())
    torch.testing.assert_close(terms["critic_fake"], b.mean())
    torch.testing.assert_close(made.deception(fake), -b.mean())


@pytest.mark.parametrize("config", [SMALL, BOTH])
def test_each_loss_teaches_its_own_side_only(config: DiscriminatorConfig) -> None:
    made = discriminator(config)
    reconstruction = clips(1).requires_grad_(True)
    made.loss(clips(0), reconstruction)[0].backward()
    assert reconstruction.grad is None
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in made.parameters())
    made.zero_grad(set_to_none=True)
    made.deception(reconstruction).backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(each.grad is None for each in made.parameters())


@pytest.mark.parametrize("num_frames", [1, 2, 5, 9])
def test_critics_judge_images_and_clips(num_frames: int) -> None:
    frames = clips(0, num_frames)
    of_frames, of_clips = discriminator(BOTH)(frames)
    assert of_frames.shape == (3, 1, num_frames, 4, 4)
    assert of_clips.shape[0] == 3
    assert of_clips.shape[3:] == (4, 4)


def test_a_critic_of_frames_knows_no_time_and_no_other_clip() -> None:
    critic = Critic(8, 2, over_time=False)
    frames = clips(0)
    torch.testing.assert_close(critic(frames.flip(2)), critic(frames).flip(2))
    torch.testing.assert_close(critic(frames[:1]), critic(frames)[:1])


def test_a_critic_of_clips_sees_motion_and_no_other_clip() -> None:
    critic = Critic(8, 2, over_time=True)
    frames = clips(0)
    assert not torch.allclose(critic(frames[:, :, [0, 2, 1, 3, 4]]), critic(frames))
    torch.testing.assert_close(critic(frames[:1]), critic(frames)[:1])


def test_lecam_holds_verdicts_to_the_running_means_of_the_other_side() -> None:
    made = discriminator(DiscriminatorConfig(weight=1.0, channels=8, layers=2, lecam=0.5))
    real, fake = clips(0), clips(1)
    with torch.no_grad():
        (a,), (b,) = made(real), made(fake)
    loss, terms = made.loss(real, fake)
    torch.testing.assert_close(made.real_mean, a.mean()[None] * 0.01)
    torch.testing.assert_close(made.fake_mean, b.mean()[None] * 0.01)
    expected = (a - made.fake_mean).clamp(min=0).square().mean()
    expected = expected + (made.real_mean - b).clamp(min=0).square().mean()
    torch.testing.assert_close(terms["lecam"], expected)
    torch.testing.assert_close(loss.detach(), terms["critic_hinge"] + 0.5 * terms["lecam"])


def test_the_balance_is_the_ratio_of_the_gradients_norms() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    error, deception = layer(x).square().mean(), -layer(x).mean()
    of_error, of_deception = (
        torch.cat(
            [each.flatten() for each in torch.autograd.grad(loss, weights, retain_graph=True)]
        )
        for weights in [[layer.weight]]
        for loss in (error, deception)
    )
    found = balance(error, deception, [layer.weight], count=5, largest=1e4)
    torch.testing.assert_close(found, of_error.norm() / (of_deception.norm() + 1e-4))
    assert float(balance(error, deception, [layer.weight], 5, largest=0.01)) == pytest.approx(0.01)
    assert float(balance(error, 0 * deception, [layer.weight], 5, largest=1e9)) == pytest.approx(
        float(of_error.norm()) * 1e4
    )
    assert layer.weight.grad is None


def test_the_weight_waits_and_then_grows() -> None:
    config = DiscriminatorConfig(weight=2.0, start_share=0.5, ramp_share=0.2)
    found = [config.weight_at(share) for share in (0, 0.49, 0.5, 0.6, 0.7, 1.0)]
    assert found == pytest.approx([0, 0, 0, 1, 2, 2])
    assert DiscriminatorConfig(weight=2.0, ramp_share=0).weight_at(0.2) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, r"weight \(-1\) must not be negative"),
        ({"layers": 0}, "layers: 1 to 6"),
        ({"start_share": 1.0}, r"start_share \(1.0\) must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)
