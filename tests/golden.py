"""The numeric fixtures beside the project: numbers of reference implementations.

A test marked `golden("var_quant_*")` that takes `golden_folder` runs once for every folder of that
family in $TESSERA_GOLDEN, whatever their names and settings. Where there is none it is skipped, and
fails with TESSERA_REQUIRE_GOLDEN=1.

    def test_ids_are_the_recorded_ones(golden_folder):
        golden = Golden(golden_folder)
        golden.check("f_hat_0", found)

A check of what a folder does not record is skipped by `golden.needs("f_hat_0")`, which says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

FAMILIES = (
    *("var_quant_*", "var_vqvae_*", "var_transformer_*", "llamagen_vq*"),
    *("par_gpt_*", "nar_image*", "nar_video*", "arpg*", "sampling_filters*"),
)
"""All that some test knows."""
LATENTS = {"rtol": 1e-4, "atol": 1e-4}
"""For latents, f_hat and decoded images."""
LOSSES = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT_NORMS = {"rtol": 1e-2, "atol": 1e-4}


def golden_root() -> Path:
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "golden"
    return Path(os.environ.get("TESSERA_GOLDEN") or beside)


def golden_folders(family: str) -> list[Path]:
    """The folders of a family, e.g. `var_quant_*`."""
    return sorted(path for path in golden_root().glob(family) if path.is_dir())


def absent(family: str) -> None:
    """Skips the test of a family without folders, or fails it where fixtures are required."""
    lacking(f"no {family} in {golden_root()} (TESSERA_GOLDEN names another folder)")


def lacking(message: str) -> None:
    """Skips a test for the reason given, or fails it where fixtures are required."""
    if os.environ.get("TESSERA_REQUIRE_GOLDEN", "") not in ("", "0"):
        pytest.fail(message)
    pytest.skip(message)


def phi_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Ours of VAR's convolutions, as many as its `share_quant_resi` says; without a share it has
    none."""
    each = settings.get("default_qresi_counts") or len(settings["v_patch_nums"])
    ratio = abs(settings["quant_resi"])
    return {
        "num_phi": settings["share_quant_resi"] or each,
        "phi_ratio": ratio if ratio > 1e-6 else 0.0,
    }


class Golden:
    """One folder: its settings, weights and recorded tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.config: dict[str, Any] = self.description["config"]
        self.scalars: dict[str, Any] = self.description["scalars"]
        self.weights = _loaded(folder / "weights.safetensors")
        self.recorded = _loaded(folder / "io.safetensors")

    def needs(self, *names: str) -> None:
        """Skips a check of tensors that this folder does not record."""
        missing = [name for name in names if name not in self.recorded]
        if missing:
            lacking(f"{self.folder.name}: records no {', '.join(missing)}")

    def check(self, name: str, found: Tensor, tolerance: dict[str, float] = LATENTS) -> None:
        """`found` is the recorded tensor `name`: ids exactly, other values within tolerance."""
        assert name in self.recorded, f"{self.folder}/io.safetensors: has no {name}"
        expected = self.recorded[name]
        exactly = {} if expected.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            found,
            expected,
            **(exactly or tolerance),
            msg=lambda text: f"{self.folder.name}/{name}: {text}",
        )

    def check_gradient_norms(self, gradients: dict[str, Tensor | None]) -> None:
        """Norms of gradients, by the reference's parameter names, are all the recorded ones."""
        expected = self.scalars["grad_norms"]
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            found = 0.0 if gradient is None else float(gradient.norm())
            norm = expected[name] or 0.0
            assert found == pytest.approx(
                norm, rel=GRADIENT_NORMS["rtol"], abs=GRADIENT_NORMS["atol"]
            ), f"{self.folder.name}: gradient of {name}"


def _loaded(path: Path) -> dict[str, Tensor]:
    """Tensors by name; whole numbers as int64 and others as float32, however they are stored."""
    return {name: _usual(value) for name, value in load_file(path).items()}


def _usual(value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return value
    return value.to(torch.float32 if value.is_floating_point() else torch.int64)
