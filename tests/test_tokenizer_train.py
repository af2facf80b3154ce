"""`tessera tokenizer train`: where it puts things, models by name, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.presets import PRESETS
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import read_settings
from training.config import TokenizerRun

SHORT = [
    *("--trainer.num_steps", "1", "--trainer.global_batch_size", "2", "--begin.clips", "4"),
    *("--trainer.device", "cpu", "--trainer.preview_every", "0", "--trainer.tensorboard", "false"),
    *("--tokenizer.autoencoder.patch", "8", "--tokenizer.autoencoder.spatial_stride", "8"),
    *("--tokenizer.autoencoder.channels", "[8]", "--tokenizer.autoencoder.decoder_blocks", "[0]"),
    *("--tokenizer.quantizer.codebook_size", "16", "--tokenizer.quantizer.codebook_dim", "4"),
]


def train(*words: str) -> int:
    return main(["tokenizer", "train", *words, *SHORT])


@pytest.fixture
def build(pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a build whose pixel shards are made."""
    folder = tmp_path / "data"
    shutil.copytree(pixel_shards, folder / "pixels")
    (folder / "config.yaml").write_text("sources: [videos]")
    (folder / "selection.parquet").touch()
    monkeypatch.setattr("pipeline.build.build_pixels", lambda config: str(folder / "pixels"))
    return folder


def test_the_result_lies_where_the_build_looks(build: Path) -> None:
    assert train("--data", str(build)) == 0
    before = load_tokenizer(build / "tokenizer").fingerprint
    assert (build / "tokenizer_run" / "metrics.jsonl").exists()
    (build / "shards.json").write_text("{}")  # codes are made: the same training may end again
    assert train("--data", str(build)) == 0
    assert load_tokenizer(build / "tokenizer").fingerprint == before


def test_a_tokenizer_whose_codes_exist_is_replaced_only_when_it_is_named(
    build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data", str(build)) == 0
    (build / "shards.json").write_text("{}")
    before = (build / "tokenizer" / "tokenizer.json").read_bytes()
    another = ["--data", str(build), "--out", str(tmp_path / "run"), "--trainer.seed", "1"]
    capsys.readouterr()
    assert train(*another) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "its codes need the tokenizer in" in line
    assert "--result" in line
    assert not (tmp_path / "run").exists()
    assert (build / "tokenizer" / "tokenizer.json").read_bytes() == before
    assert train(*another, "--result", str(build / "tokenizer")) == 0
    assert (build / "tokenizer" / "tokenizer.json").read_bytes() != before


def test_pixel_shards_stay_what_they_are(
    pixel_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pixel_shards.iterdir())
    assert train("--data", str(pixel_shards)) == 2
    assert "out is required" in capsys.readouterr().err
    assert train("--data", str(pixel_shards), "--out", str(tmp_path / "run")) == 0
    assert load_tokenizer(tmp_path / "run" / "tokenizer").codebook_size == 16
    assert sorted(pixel_shards.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "base-s8"])
def test_a_model_by_name_is_the_preset_with_the_flags_on_top(
    name: str, tmp_path: Path, pixel_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[TokenizerRun] = []
    monkeypatch.setattr("training.cli._start", launched.append)
    words = ["--model", name, "--data", str(pixel_shards), "--out", str(tmp_path)]
    assert main(["tokenizer", "train", *words, "--tokenizer.quantizer.codebook_size", "99"]) == 0
    config = launched[0].tokenizer
    assert config.autoencoder == PRESETS[name].autoencoder
    assert config.quantizer.scales == PRESETS[name].quantizer.scales
    assert config.quantizer.codebook_size == 99
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"tokenizer": {"autoencoder": {"norm": "group"}}}))
    assert main(["tokenizer", "train", str(path), *words]) == 0
    assert launched[1].tokenizer == PRESETS[name]
    assert launched[1].tokenizer != read_settings(TokenizerRun, path).tokenizer


def test_a_tokenizer_that_is_there_trains_on_with_its_own_settings(
    pixel_shards: Path, tmp_path: Path
) -> None:
    """As a converted VAR or LlamaGen does."""
    torch.manual_seed(0)
    image = ImageAutoencoderConfig(
        channels=32, channel_multipliers=(1, 1), num_blocks=1, z_channels=4
    )
    codes = QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=1)
    made = Tokenizer(TokenizerConfig(architecture="image", image=image, quantizer=codes))
    made.quantizer.codebook.set_codes(torch.randn(16, 4))
    save_tokenizer(made, tmp_path / "var" / "tokenizer")
    folder, run = str(tmp_path / "var"), str(tmp_path / "run")
    words = ["--model", folder, "--begin.folder", folder, "--data", str(pixel_shards)]
    assert main(["tokenizer", "train", *words, "--out", run, *SHORT[:10]]) == 0
    found = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert (found.config.image, found.config.quantizer) == (image, codes)
    before, after = (dict(each.autoencoder.named_parameters()) for each in (made, found))
    for name, value in before.items():  # one step, warming up
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-3, check_stride=False)


def test_an_unknown_model_is_one_line_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "train", "--model", "huge"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "base-s8" in error
