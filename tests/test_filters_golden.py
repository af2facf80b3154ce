"""The filters against what the references' leave of recorded logits, ties included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden import lacking
from training.drawing import Filters, filtered

SMALLEST = 1e-5
"""The references' least temperature; of p, less than any best probability."""


@pytest.mark.parametrize("reference", ["var", "llama"])
@pytest.mark.golden("sampling_filters*")
def test_logits_are_filtered_as_recorded(golden_folder: Path, reference: str) -> None:
    scalars = json.loads((golden_folder / "config.json").read_text())["scalars"]
    recorded = load_file(golden_folder / "io.safetensors")
    combinations = scalars.get(f"{reference}_combos", [])
    if not combinations:
        lacking(f"{golden_folder.name}: records no {reference}_combos")
    temperatures = scalars.get(f"{reference}_temperatures", [1.0] * len(combinations))
    for number, (top_k, top_p) in enumerate(combinations):
        is_off = top_p >= 1 or (reference, top_p) == ("var", 0)
        nucleus = 1.0 if is_off else max(top_p, SMALLEST)
        filters = Filters(max(temperatures[number], SMALLEST), top_k, nucleus)
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
