"""The multi-scale quantizer over every lookup: what must hold whatever the codes are."""

from __future__ import annotations

import pytest
import torch

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Scale, Schedule, image_and_clip, single_grid
from tokenizer.settings import UserError

LOOKUPS = {
    "l2": {"codebook_size": 64},
    "l2 by gradient": {"codebook_size": 64, "learned_by": "gradient"},
    "cosine": {"codebook_size": 64, "metric": "cosine"},
    "sphere": {"codebook_size": 64, "metric": "sphere"},
    "fsq": {"lookup": "fsq", "levels": (5, 4, 4, 3, 3, 3), "codebook_size": 2160},
    "bsq": {"lookup": "bsq", "codebook_size": 64},
    "lfq": {"lookup": "lfq", "codebook_size": 64},
}
CLIP = image_and_clip(3, (1, 2, 4))


def smooth_latents(schedule, batch=16, seed=0):
    """Latents with something to say at every scale."""
    draw = torch.Generator().manual_seed(seed)
    t, finest = schedule.num_latent_frames, schedule.scales[-1]
    shape = (finest.h, finest.w)
    parts = [torch.randn(batch, 6, 1, 1, 1, generator=draw).expand(-1, -1, t, *shape)]
    parts.append(0.5 * torch.randn(batch, 6, t, *shape, generator=draw))
    return sum(parts)


def begun(name, schedule=CLIP, **settings):
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_dim=6, **LOOKUPS[name], **settings))
    quantizer.begin(smooth_latents(schedule), schedule, torch.Generator().manual_seed(0))
    return quantizer


def target(quantizer, latents):
    return quantizer.codebook.prepared(latents)


@pytest.mark.parametrize("name", LOOKUPS)
def test_after_beginning_from_data_the_error_falls_with_every_scale(name):
    quantizer, latents = begun(name), smooth_latents(CLIP, seed=1)
    codes = quantizer.encode(latents, CLIP)
    errors = [
        float((quantizer.decode(codes, CLIP, count) - target(quantizer, latents)).square().mean())
        for count in range(4)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.75 * errors[0]


@pytest.mark.parametrize("name", LOOKUPS)
def test_training_and_encoding_give_the_same_codes_and_latents(name):
    quantizer, latents = begun(name), smooth_latents(CLIP, seed=1)
    quantized = quantizer(latents, CLIP)
    codes = quantizer.encode(latents, CLIP)
    by_scale = torch.cat([part.flatten() for part in CLIP.split(codes)])
    assert torch.equal(quantized.codes, by_scale)
    torch.testing.assert_close(quantized.latents, quantizer.decode(codes, CLIP))
    left = (quantizer.decode(codes, CLIP) - target(quantizer, latents))[:, :, 1:].square().mean()
    share = left / target(quantizer, latents)[:, :, 1:].square().mean()
    torch.testing.assert_close(quantized.residual_share[-1], share)


@pytest.mark.parametrize("name", LOOKUPS)
def test_permuting_a_batch_or_padding_it_changes_no_id(name):
    quantizer, latents = begun(name), smooth_latents(CLIP, seed=1)
    codes = quantizer.encode(latents, CLIP)
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantizer.encode(latents[order], CLIP), codes[order])
    padded = torch.cat([latents[:5], latents[4:5].expand(11, -1, -1, -1, -1)])
    assert torch.equal(quantizer.encode(padded, CLIP)[:5], codes[:5])


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_gradient_passes_straight_through_what_is_prepared(name):
    quantizer = begun(name)
    latents = smooth_latents(CLIP, batch=2, seed=1).requires_grad_()
    direction = torch.randn_like(latents)
    (found,) = torch.autograd.grad((quantizer(latents, CLIP).latents * direction).sum(), latents)
    prepared = quantizer.codebook.prepared(latents)
    (expected,) = torch.autograd.grad((prepared * direction).sum(), latents, allow_unused=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("quantize", [True, False])
def test_every_parameter_gets_a_gradient_and_only_learned_codes_move(name, quantize):
    quantizer = begun(name)
    latents = smooth_latents(CLIP, batch=2, seed=1).requires_grad_()
    quantized = quantizer(latents, CLIP, quantize)
    (quantized.reconstruction_loss + quantized.commitment_loss).backward()
    gradients = {key: each.grad for key, each in quantizer.named_parameters()}
    assert all(each is not None for each in gradients.values())
    assert ("codebook.weight" in gradients) == (name == "l2 by gradient")
    assert ("log_gain" in gradients) == (name in ("sphere", "fsq", "bsq", "lfq"))
    if quantize and "log_gain" in gradients:
        assert (gradients["log_gain"] != 0).all()


@pytest.mark.parametrize("name", LOOKUPS)
def test_codes_and_what_a_generator_is_fed_are_those_of_float32_under_autocast(name):
    quantizer, latents = begun(name), smooth_latents(CLIP, seed=1)
    codes = quantizer.encode(latents, CLIP)
    features, decoded = quantizer.input_features(codes, CLIP), quantizer.decode(codes, CLIP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(latents, CLIP), codes)
        assert torch.equal(quantizer.input_features(codes, CLIP), features)
        assert torch.equal(quantizer.decode(codes, CLIP), decoded)


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize(
    "schedule",
    [
        single_grid(2, 3, 4),
        image_and_clip(5, ((1, 1), (2, 3), (3, 5)), clip_latent_frames=2),
        image_and_clip(2, (1, 3), clip_sizes=(1, 1, 2, 3, 3)),
        Schedule((Scale(0, 4, 1, 1, 1), Scale(0, 4, 2, 2, 2), Scale(0, 4, 4, 3, 3))),
    ],
)
def test_any_schedule_goes_with_any_lookup(name, schedule):
    quantizer = begun(name, schedule)
    codes = quantizer.encode(smooth_latents(schedule, batch=3, seed=2), schedule)
    assert codes.shape == (3, schedule.num_tokens)
    assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size
    decoded = quantizer.decode(codes, schedule)
    assert decoded.shape == smooth_latents(schedule, batch=3).shape
    assert decoded.isfinite().all()


@pytest.mark.parametrize("num_phi", [1, 2, 3])
def test_all_forms_of_phi_sharing_train(num_phi):
    quantizer = begun("l2 by gradient", num_phi=num_phi)
    quantizer(smooth_latents(CLIP), CLIP).reconstruction_loss.backward()
    assert len(quantizer.phi) == num_phi
    assert all(phi.weight.grad.abs().sum() > 0 for phi in quantizer.phi)


def test_without_a_share_of_phi_there_are_no_convolutions_and_a_grid_is_its_codes():
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(codebook_dim=6, phi_ratio=0.0, scales=(4,), num_phi=1, metric="sphere")
    )
    quantizer.codebook.set_codes(torch.randn(512, 6))
    assert list(quantizer.parameters()) == []
    codes = torch.randint(512, (2, 16))
    decoded = quantizer.decode(codes, single_grid(1, 4, 4))
    expected = quantizer.codebook.lookup(codes).movedim(1, 2).unflatten(2, (1, 4, 4))
    torch.testing.assert_close(decoded, expected)


def test_a_single_grid_of_fsq_is_rounding_alone():
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(
            lookup="fsq", levels=(8, 5), codebook_size=40, codebook_dim=2, phi_ratio=0.0,
            scales=(4,), num_phi=1,
        )
    )  # fmt: skip
    latents, schedule = 2 * torch.randn(2, 2, 1, 4, 4), single_grid(1, 4, 4)
    bounded = quantizer.codebook.prepared(latents)
    steps = torch.tensor([4.0, 2.0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(
        quantizer(latents, schedule).latents, (bounded * steps).round() / steps
    )


def test_the_entropy_term_reaches_the_latents_and_codes_that_learn_by_gradient():
    for name in ("l2 by gradient", "bsq"):
        quantizer = begun(name, entropy_weight=0.1, entropy_temperature=1.0)
        latents = smooth_latents(CLIP, batch=4, seed=1).requires_grad_()
        entropy = quantizer(latents, CLIP).extra["entropy"]
        entropy.backward()
        assert latents.grad.abs().sum() > 0
        if name != "bsq":
            assert quantizer.codebook.weight.grad.abs().sum() > 0


def test_codes_may_be_restarted_between_the_loss_and_its_gradient():
    quantizer = begun(
        "sphere", learned_by="gradient", entropy_weight=0.1, restart_share=0.9, ema_decay=0.5
    )
    quantized = quantizer(smooth_latents(CLIP).requires_grad_(), CLIP)
    draw = torch.Generator().manual_seed(0)
    assert quantizer.codebook.update(quantized.vectors, quantized.codes, draw) > 0
    (quantized.reconstruction_loss + quantized.extra["entropy"]).backward()
    assert quantizer.codebook.weight.grad.isfinite().all()


def test_latents_of_another_grid_or_length_are_refused():
    quantizer = begun("l2")
    with pytest.raises(UserError, match="larger than the latent grid"):
        quantizer.encode(torch.randn(1, 6, 3, 2, 2), CLIP)
    with pytest.raises(UserError, match="for 3 latent frames, there are 5"):
        quantizer(torch.randn(1, 6, 5, 4, 4), CLIP)


def test_a_quantizer_of_fixed_codes_begins_the_same_on_every_machine_that_sees_the_same_data():
    gains = [begun("bsq").log_gain for _ in range(2)]
    assert torch.equal(*gains)
    assert (gains[0].exp() < 2).all()
    assert gains[0][0] > gains[0][2]
