"""The encoder as the actor runs it: padded batches, precision, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import TokenizeSettings
from pipeline.encode import CodeEncoder, code_recipe
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.finite import NotFinite
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError, to_dict

SETTINGS = TokenizeSettings(batch_size=8)
CONFIG = TokenizerConfig(
    autoencoder=AutoencoderConfig(
        patch=4,
        temporal_patch=2,
        spatial_stride=8,
        channels=(8, 12),
        encoder_blocks=(1, 1),
        decoder_blocks=(0, 0),
    ),
    quantizer=QuantizerConfig(codebook_size=64, codebook_dim=4, scales=(1, 2, 4)),
)

GROUP_NORM = replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, norm="group", norm_groups=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    made = Tokenizer(CONFIG)
    for parameter in made.autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    made.quantizer.codebook.set_codes(torch.randn(64, 4, generator=generator))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(made, folder)
    return folder


def clips(count: int, num_frames: int = 9) -> np.ndarray:
    shape = count, num_frames, 32, 32, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_clip_has_the_same_codes_in_a_full_and_in_a_padded_batch(folder: Path) -> None:
    encoder, frames = CodeEncoder(folder, SETTINGS), clips(8)
    full = encoder.encode(frames)
    assert full.dtype == np.uint16
    for count in (1, 3, 7):
        np.testing.assert_array_equal(encoder.encode(frames[:count]), full[:count])


def test_permuting_clips_permutes_their_codes(folder: Path) -> None:
    encoder, frames = CodeEncoder(folder, SETTINGS), clips(8)
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_array_equal(encoder.encode(frames[order]), encoder.encode(frames)[order])


def test_bfloat16_is_the_autoencoders_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents come in bfloat16, the quantizer gets them as float32 and works in it."""
    encoder = CodeEncoder(folder, replace(SETTINGS, precision="bfloat16"))
    quantizer = encoder._tokenizer.quantizer
    seen = []

    def nearest(vectors: torch.Tensor) -> torch.Tensor:
        seen.append(vectors.dtype)
        return torch.zeros(len(vectors), dtype=torch.int64)

    latents = []
    monkeypatch.setattr(quantizer.codebook, "nearest", nearest)
    monkeypatch.setattr(
        encoder._tokenizer,
        "quantize",
        lambda *given: (
            latents.append(given[0].dtype) or Tokenizer.quantize(encoder._tokenizer, *given)
        ),
    )
    encoder.encode(clips(2))
    assert set(latents) == {torch.bfloat16}
    assert set(seen) == {torch.float32}


def test_most_codes_survive_bfloat16(folder: Path) -> None:
    exact = CodeEncoder(folder, SETTINGS).encode(clips(8))
    coarse = CodeEncoder(folder, replace(SETTINGS, precision="bfloat16")).encode(clips(8))
    assert 0.7 < (exact == coarse).mean() < 1


def test_precision_and_compilation_are_part_of_what_made_the_codes(folder: Path) -> None:
    recipes = [
        code_recipe(folder, replace(SETTINGS, **change))
        for change in ({}, {"precision": "bfloat16"}, {"compile": "on"}, {"device": "cuda"})
    ]
    assert [(each.how.get("precision"), each.how.get("compiled")) for each in recipes] == [
        (None, None),  # as codes were made before this could be set
        ("bfloat16", False),
        ("float32", True),
        ("bfloat16", True),
    ]
    assert len({each.fingerprint for each in recipes}) == 4
    spelled_out = replace(SETTINGS, precision="float32", compile="off")
    assert code_recipe(folder, spelled_out).fingerprint == recipes[0].fingerprint


def test_tiles_give_the_same_codes_and_are_part_of_what_made_them(folder: Path) -> None:
    tiled = replace(SETTINGS, tile=16)
    whole = CodeEncoder(folder, SETTINGS).encode(clips(8))
    assert (CodeEncoder(folder, tiled).encode(clips(8)) == whole).mean() > 0.999
    recipes = [code_recipe(folder, each) for each in (SETTINGS, tiled, replace(SETTINGS, tile=24))]
    assert len({each.fingerprint for each in recipes}) == 3
    assert ["tile" in each.how for each in recipes] == [False, True, True]
    with_compile = [replace(tiled, device="cuda", compile=how) for how in ("auto", "on")]
    assert [each.is_compiled for each in with_compile] == [False, True]


def test_encoding_of_whole_frames_has_the_fingerprint_that_it_had_without_tiles(
    folder: Path,
) -> None:
    recipe = code_recipe(folder, SETTINGS)
    assert set(recipe.how) == {"codes", "tokenizer", "batch_size", "threads", "device", "torch"}


@pytest.mark.parametrize(
    ("config", "tile", "expected"),
    [
        (CONFIG, 20, "must be a multiple of 8 pixels; nearest are 16 and 24"),
        (GROUP_NORM, 16, "norm is group"),
        (TokenizerConfig(architecture="image"), 16, "cannot be tiled"),
    ],
)
def test_tiles_that_a_tokenizer_cannot_have_are_refused_before_it_is_loaded(
    tmp_path: Path, config: TokenizerConfig, tile: int, expected: str
) -> None:
    description = {"format": 1, "fingerprint": "f", "config": to_dict(config)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=expected) as error:
        code_recipe(tmp_path, replace(SETTINGS, tile=tile))
    assert str(error.value).startswith("tokenize.tile")
    code_recipe(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"tile \(0\) must be at least 1"):
        TokenizeSettings(tile=0)


def test_latents_that_are_no_numbers_are_refused_with_the_clips_place(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    frames = torch.from_numpy(clips(3))
    latents = tokenizer.encode_latents(frames.movedim(-1, 1).float())
    latents[1, 0, 1, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="clip 1 of the batch: its latents are NaN") as error:
        tokenizer.quantize(latents, tokenizer.schedule_for(9, 32, 32))
    assert error.value.row == 1


@pytest.mark.gpu
def test_on_a_gpu_most_codes_are_those_of_the_cpu(folder: Path) -> None:
    frames = clips(8)
    exact = CodeEncoder(folder, SETTINGS).encode(frames)
    for precision, least in (("float32", 0.99), ("bfloat16", 0.7)):
        settings = replace(SETTINGS, device="cuda", precision=precision)
        assert (exact == CodeEncoder(folder, settings).encode(frames)).mean() > least
