"""The harness of the numeric fixtures: nothing that is absent or damaged passes for tested."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import FAMILIES, Golden, absent, golden_folders, phi_settings


@pytest.mark.golden("*")
def test_every_folder_is_of_a_family_that_is_tested(golden_folder: Path) -> None:
    if not any(fnmatch(golden_folder.name, family) for family in FAMILIES):
        pytest.skip(f"{golden_folder}: no test knows this family; known: {', '.join(FAMILIES)}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_GOLDEN", str(tmp_path))
    return tmp_path


def write(folder, recorded):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {}, "scalars": {}}))
    save_file({"a": torch.zeros(1)}, folder / "weights.safetensors")
    save_file(recorded, folder / "io.safetensors")
    return Golden(folder)


@pytest.mark.parametrize(
    ("required", "outcome"),
    [("", pytest.skip.Exception), ("0", pytest.skip.Exception), ("1", pytest.fail.Exception)],
)
def test_an_absent_family_is_skipped_and_fails_where_it_is_required(
    root, monkeypatch, required, outcome
):
    monkeypatch.setenv("TESSERA_REQUIRE_GOLDEN", required)
    assert golden_folders("var_quant_*") == []
    with pytest.raises(outcome, match=f"no var_quant_\\* in {root}"):
        absent("var_quant_*")


@pytest.mark.parametrize("lost", ["config.json", "weights.safetensors", "io.safetensors"])
def test_a_folder_that_lacks_a_file_is_not_passed_over(root, lost):
    write(root / "var_quant_a", {"f": torch.zeros(1)})
    (root / "var_quant_a" / lost).unlink()
    (folder,) = golden_folders("var_quant_*")
    with pytest.raises(FileNotFoundError, match=f"var_quant_a/{lost}"):
        Golden(folder)


def test_other_numbers_ids_or_tensors_than_recorded_are_named(root):
    golden = write(root / "var_quant_a", {"f": torch.zeros(2), "idx_0": torch.arange(3)})
    golden.check("f", torch.full((2,), 5e-5))
    golden.check("idx_0", torch.arange(3))
    with pytest.raises(AssertionError, match="var_quant_a/f: "):
        golden.check("f", torch.full((2,), 2e-4))
    with pytest.raises(
        AssertionError, match=r"var_quant_a/idx_0: (.|\n)*Mismatched elements: 1 / 3"
    ):
        golden.check("idx_0", torch.tensor([0, 1, 3]))
    with pytest.raises(AssertionError, match="has no f_hat_0"):
        golden.check("f_hat_0", torch.zeros(2))


def test_a_check_of_what_is_not_recorded_is_skipped_by_name(root, monkeypatch):
    monkeypatch.setenv("TESSERA_REQUIRE_GOLDEN", "")
    golden = write(root / "par_gpt_4", {"tf_logits": torch.zeros(2)})
    golden.needs("tf_logits")
    with pytest.raises(pytest.skip.Exception, match="par_gpt_4: records no tf_drop_logits"):
        golden.needs("tf_logits", "tf_drop_logits")
    monkeypatch.setenv("TESSERA_REQUIRE_GOLDEN", "1")
    with pytest.raises(pytest.fail.Exception, match="records no gen_order"):
        golden.needs("gen_order")


def test_numbers_are_the_same_however_they_are_stored(root):
    values = {"idx_0": torch.arange(3, dtype=torch.int32), "f": torch.ones(2, dtype=torch.float64)}
    golden = write(root / "var_quant_a", values | {"mask": torch.ones(1, dtype=torch.bool)})
    golden.check("idx_0", torch.arange(3))
    golden.check("f", torch.ones(2))
    golden.check("mask", torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("shared", "ratio", "number", "share"),
    [(0, 0.5, 3, 0.5), (1, -0.3, 1, 0.3), (4, 0.5, 4, 0.5), (2, 1e-7, 2, 0.0)],
)
def test_convolutions_are_counted_as_var_counts_them(shared, ratio, number, share):
    settings = {"v_patch_nums": [1, 2, 4], "share_quant_resi": shared, "quant_resi": ratio}
    assert phi_settings(settings) == {"num_phi": number, "phi_ratio": share}
