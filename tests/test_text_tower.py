"""A frozen text tower of open_clip, with random weights: one of the true shapes, and a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from tests.test_trainer import generator_run
from tokenizer.settings import UserError
from training.caption_features import FEATURES_FILE
from training.config import ConditionConfig
from training.launch import local
from training.run import open_run
from training.text_tower import load_tower

PUBLISHED = "ViT-S-32-alt"
MODEL = "text-of-tests"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_weights(model: str, path: Path) -> Path:
    """The text half of a CLIP model beside something of its visual half."""
    import open_clip
    from open_clip.model import _build_text_tower

    config = open_clip.get_model_config(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = _build_text_tower(config["embed_dim"], config["text_cfg"])
    tensors = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(tensors | {"visual.proj": torch.zeros(2, 2), "logit_scale": torch.ones(())}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a tiny model, which open_clip knows from now on."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{MODEL}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{MODEL}.json")
    return write_weights(MODEL, folder / "clip.safetensors")


@pytest.mark.slow
def test_a_caption_has_a_row_per_piece_and_a_vector_that_do_not_depend_on_its_batch(
    tmp_path: Path,
) -> None:
    tower = load_tower(PUBLISHED, write_weights(PUBLISHED, tmp_path / "clip.safetensors"), None)
    captions = ["seven", "a red seven, moving left"]
    both = tower.encode(captions, 77)
    assert both.counts.tolist() == [3, 8]  # with a start and an end
    assert both.pieces.shape == (11, 256)
    assert both.pooled.shape == (2, 256)
    torch.testing.assert_close(
        both.pooled.float().square().mean(1), torch.ones(2), atol=1e-2, rtol=0
    )
    alone = tower.encode(captions[1:], 77)
    torch.testing.assert_close(alone.pieces, both.pieces[3:], atol=5e-3, rtol=5e-3)
    assert tower.encode(captions, 4).counts.tolist() == [3, 4]


def test_weights_with_a_prefix_are_the_same_and_others_are_refused(
    weights: Path, tmp_path: Path
) -> None:
    tensors = load_file(weights)
    tensors.pop("visual.proj")
    save_file(
        {f"text.{name}": value for name, value in tensors.items()}, tmp_path / "c.safetensors"
    )
    expected = load_tower(MODEL, weights, None).encode(["seven"], 77)
    found = load_tower(MODEL, tmp_path / "c.safetensors", None).encode(["seven"], 77)
    assert torch.equal(found.pieces, expected.pieces)
    tensors.pop("positional_embedding")
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 tensors \(positional_embedding\)"):
        load_tower(MODEL, tmp_path / "less.safetensors", None)
    with pytest.raises(UserError, match="not the weights of ViT-S-32-alt: lacks"):
        load_tower(PUBLISHED, weights, None)


@pytest.mark.parametrize("model", ["ViT-nothing", "ViT-B-16-SigLIP"])
def test_models_that_have_no_such_tower_are_refused(model: str, weights: Path) -> None:
    with pytest.raises(UserError, match="must be a model of open_clip"):
        load_tower(model, weights, None)


def test_without_its_weights_a_tower_is_one_line(weights: Path) -> None:
    with pytest.raises(UserError, match=r"--condition\.weights"):
        load_tower(MODEL, None, None)
    with pytest.raises(UserError, match="other weights"):
        load_tower(MODEL, weights, "0" * 64)


@pytest.mark.slow
def test_a_run_samples_its_captions_by_itself_and_new_ones_with_the_weights(
    weights: Path, code_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "clip.safetensors"
    moved.symlink_to(weights)
    condition = ConditionConfig(kind="clip_text", model=MODEL, weights=str(moved))
    out = tmp_path / "run"
    run = generator_run(code_shards, out, 2, condition=condition)
    local.launch(run)
    assert (out / FEATURES_FILE).exists()
    moved.unlink()
    longer = generator_run(code_shards, out, 3, condition=condition)
    assert local.launch(longer).step == 3  # from the run's own file
    opened = open_run(out)
    trained_on = opened.vocabulary.examples[0]
    capsys.readouterr()
    sample = ["sample", str(out), "--guidance.scale", "2", "--out", str(tmp_path / "samples")]
    assert main([*sample, "--prompts", f'["{trained_on}"]']) == 0
    new = '["a seven"]'
    assert main([*sample, "--prompts", new]) == 2
    error = capsys.readouterr().err
    assert "--text_weights" in error
    assert error.count("\n") == 1
    assert main([*sample, "--prompts", new, "--text_weights", str(weights)]) == 0
    too_long = '["' + "seven " * 30 + '"]'
    assert main([*sample, "--prompts", too_long, "--text_weights", str(weights)]) == 2
    assert "word pieces; this run takes" in capsys.readouterr().err


def test_training_without_weights_is_one_line(
    code_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(code_shards), "--out", str(tmp_path / "run")]
    assert main(["train", "demo", *arguments, "--condition.kind", "clip_text"]) == 2
    assert "--condition.weights" in capsys.readouterr().err
