"""The filters against what the references' leave of recorded logits, ties included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.drawing import Filters, filtered


@pytest.mark.parametrize("reference", ["var", "llama"])
@pytest.mark.golden("sampling_filters*")
def test_logits_are_filtered_as_recorded(golden_folder: Path, reference: str) -> None:
    scalars = json.loads((golden_folder / "config.json").read_text())["scalars"]
    recorded = load_file(golden_folder / "io.safetensors")
    combinations = scalars[f"{reference}_combos"]
    temperatures = scalars.get(f"{reference}_temperatures", [1.0] * len(combinations))
    for number, (top_k, top_p) in enumerate(combinations):
        nucleus = top_p if 0 < top_p < 1 else 1.0  # VAR's "off" is 0
        filters = Filters(temperatures[number], top_k, nucleus)
        logits = recorded[f"{reference}_logits"]
        expected = recorded[f"{reference}_filtered_{number}"]
        for found in (filtered(logits, filters), filtered(logits.double(), filters)):
            assert torch.equal(found.isinf(), expected.isinf())
            torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=1e-6)
            probabilities = recorded.get(f"{reference}_probs_{number}")
            if probabilities is not None:
                torch.testing.assert_close(
                    found.softmax(dim=-1).float(), probabilities, atol=1e-6, rtol=1e-5
                )
