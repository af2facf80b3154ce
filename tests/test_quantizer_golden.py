"""The multi-scale quantizer against numbers of the reference implementation of VAR."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokenizer.config import QuantizerConfig
from tokenizer.quantizer import MultiScaleQuantizer, phi_of_scale
from tokenizer.scales import image_and_clip

GOLDEN = Path(
    os.environ.get("TESSERA_GOLDEN", Path(__file__).parent.parent.parent / "shared" / "golden")
)
FOLDERS = [
    folder
    for folder in sorted(GOLDEN.glob("var_quant_*"))
    if not json.loads((folder / "config.json").read_text())["config"]["using_znorm"]
]
pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not FOLDERS, reason=f"no fixtures in {GOLDEN}; set TESSERA_GOLDEN"),
]


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def fixture(request):
    description = json.loads((request.param / "config.json").read_text())
    settings, sides = description["config"], description["config"]["v_patch_nums"]
    made = MultiScaleQuantizer(
        QuantizerConfig(
            codebook_size=settings["vocab_size"],
            codebook_dim=settings["z_channels"],
            scales=tuple(sides),
            num_phi=settings["share_quant_resi"] or len(sides),
            phi_ratio=settings["quant_resi"],
        )
    ).requires_grad_(False)
    weights = load_file(request.param / "weights.safetensors")
    made.codebook.set_codes(weights["embedding.weight"])
    made.phi.load_state_dict(_phi(weights))
    return made, image_and_clip(1, sides), load_file(request.param / "io.safetensors"), description


def test_ids_are_exactly_the_recorded_ones(fixture):
    made, schedule, recorded, _ = fixture
    ids = schedule.split(made.encode(recorded["f"][:, :, None], schedule))
    for index, part in enumerate(ids):
        assert torch.equal(part.flatten(1), recorded[f"idx_{index}"])


def test_the_reconstruction_after_every_scale_is_the_recorded_one(fixture):
    made, schedule, recorded, _ = fixture
    codes = _recorded_codes(recorded, schedule)
    for index in range(len(schedule.scales)):
        found = made.decode(codes, schedule, index + 1)[:, :, 0]
        torch.testing.assert_close(found, recorded[f"f_hat_{index}"], rtol=1e-4, atol=1e-4)


def test_the_transformer_input_is_the_recorded_one(fixture):
    made, schedule, recorded, _ = fixture
    features = made.input_features(_recorded_codes(recorded, schedule), schedule)
    torch.testing.assert_close(features[:, 1:], recorded["var_input"], rtol=1e-4, atol=1e-4)


def test_the_training_loss_and_the_choice_of_phi_are_the_recorded_ones(fixture):
    made, schedule, recorded, description = fixture
    quantized = made(recorded["f"][:, :, None], schedule)
    beta = description["config"]["beta"]
    loss = quantized.reconstruction_loss + beta * quantized.commitment_loss
    torch.testing.assert_close(loss.view(1), recorded["train_vq_loss"], rtol=1e-5, atol=1e-6)
    count = len(schedule.scales)
    chosen = [phi_of_scale(index, count, len(made.phi)) for index in range(count)]
    assert chosen == description["scalars"]["phi_index_per_scale"]


def _recorded_codes(recorded, schedule):
    parts = [recorded[f"idx_{index}"] for index in range(len(schedule.scales))]
    return torch.cat(parts, dim=1)


def _phi(weights):
    """The reference numbers its convolutions unless there is only one."""
    found = {}
    for name, value in weights.items():
        if name.startswith("quant_resi"):
            *_, number, kind = name.split(".")
            found[f"{number if number.isdigit() else 0}.{kind}"] = value
    return found
