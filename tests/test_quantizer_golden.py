"""The multi-scale quantizer against numbers of the reference implementation of VAR."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import LOSSES, Golden, phi_settings
from tokenizer.quantizer import MultiScaleQuantizer, phi_of_scale
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule, image_and_clip

pytestmark = pytest.mark.golden("var_quant_*")

USAGE = "ema_vocab_hit_SV"
"""Statistics that no code depends on."""


@pytest.fixture
def golden(golden_folder: Path) -> Golden:
    return Golden(golden_folder)


@pytest.fixture
def schedule(golden: Golden) -> Schedule:
    sides = golden.config["v_patch_nums"]
    return image_and_clip(1, [side if isinstance(side, int) else tuple(side) for side in sides])


@pytest.fixture
def quantizer(golden: Golden) -> MultiScaleQuantizer:
    """The reference's, codes learned by gradient."""
    settings = golden.config
    made = MultiScaleQuantizer(
        QuantizerConfig(
            codebook_size=settings["vocab_size"],
            codebook_dim=settings["z_channels"],
            metric="cosine" if settings["using_znorm"] else "l2",
            learned_by="gradient",
            **phi_settings(settings),
        )
    )
    made.codebook.set_codes(golden.weights["embedding.weight"])
    state = {name: v for name, v in made.state_dict().items() if name.startswith("codebook.")}
    state |= {_our_name(name): v for name, v in golden.weights.items() if name != USAGE}
    made.load_state_dict(state)
    return made


def test_ids_are_exactly_the_recorded_ones(golden, quantizer, schedule) -> None:
    codes = quantizer.encode(golden.recorded["f"][:, :, None], schedule)
    for index, part in enumerate(schedule.split(codes)):
        golden.check(f"idx_{index}", part.flatten(1))


def test_the_reconstruction_after_every_scale_is_the_recorded_one(
    golden, quantizer, schedule
) -> None:
    codes = _recorded_codes(golden, schedule)
    for index in range(len(schedule.scales)):
        golden.check(f"f_hat_{index}", quantizer.decode(codes, schedule, index + 1)[:, :, 0])
    golden.check("embed_to_fhat_last", quantizer.decode(codes, schedule)[:, :, 0])


def test_what_a_transformer_is_fed_is_what_was_recorded(golden, quantizer, schedule) -> None:
    codes = _recorded_codes(golden, schedule)
    features = quantizer.input_features(codes, schedule)
    golden.check("var_input", features[:, schedule.scales[0].num_tokens :])
    maps = quantizer.input_maps(codes, schedule)
    for index in range(len(maps) - 1):
        golden.check(f"ar_next_input_{index}", maps[index + 1][:, :, 0])
    last = f"ar_next_input_{len(maps) - 1}"
    golden.check(last, quantizer.decode(codes, schedule)[:, :, 0])


def test_the_choice_of_phi_is_the_recorded_one(golden, quantizer, schedule) -> None:
    count = len(schedule.scales)
    chosen = [phi_of_scale(index, count, quantizer.config.num_phi) for index in range(count)]
    assert chosen == golden.scalars["phi_index_per_scale"]


def test_the_training_pass_and_its_gradients_are_the_recorded_ones(
    golden, quantizer, schedule
) -> None:
    latents = golden.recorded["f"][:, :, None].requires_grad_()
    quantized = quantizer(latents, schedule)
    golden.check("train_f_hat", quantized.latents.detach()[:, :, 0])
    beta = golden.config["beta"]
    loss = quantized.reconstruction_loss + beta * quantized.commitment_loss
    golden.check("train_vq_loss", loss.detach().view(1), LOSSES)
    ramp = torch.linspace(-1, 1, latents.numel()).view_as(latents)
    (loss + (quantized.latents * ramp).sum()).backward()
    assert latents.grad is not None
    golden.check("train_grad_f", latents.grad[:, :, 0])
    if "grad_norms" in golden.scalars:
        gradients = dict(quantizer.named_parameters())
        names = golden.scalars["grad_norms"]
        golden.check_gradient_norms({name: gradients[_our_name(name)].grad for name in names})


def _recorded_codes(golden: Golden, schedule: Schedule) -> Tensor:
    parts = [golden.recorded[f"idx_{index}"] for index in range(len(schedule.scales))]
    return torch.cat(parts, dim=1)


def _our_name(name: str) -> str:
    """Ours of a reference's parameter; a single phi has no number there."""
    if not name.startswith("quant_resi."):
        return name.replace("embedding.", "codebook.")
    *_, number, kind = name.split(".")
    return f"phi.{number if number.isdigit() else 0}.{kind}"
