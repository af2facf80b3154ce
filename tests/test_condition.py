"""Conditions of every kind: guidance between none and all of it, dropout, frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.generators import (
    CODEBOOK_SIZE,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_features,
    make_generator,
    make_quantizer,
    random_codes,
    shared_generator,
)
from tests.test_trainer import generator_run
from training.caption_features import FEATURES_FILE, load_features
from training.config import ConditionConfig, GuidanceConfig, SampleConfig
from training.sampler import Step, sampling
from training.tasks.generator import GeneratorTask
from training.vocabulary import ABSENT

KINDS = ("none", "class", "text", "clip_text")
CHOSEN = [each for each in VARIANTS if each.name in ("next_scale", "raster", "par", "nar", "arpg")]
every_kind = pytest.mark.parametrize("kind", KINDS)


def logits(variant: Variant, kind: str, prompts: Tensor, scale: float) -> Tensor:
    """Of every cell of three samples, guided in every step whatever the scale."""
    steps: list[Step] = []
    sampling(
        shared_generator(variant, kind),
        prompts,
        variant.schedule,
        SampleConfig(temperature=0.0, guidance=GuidanceConfig(scale=1.0)),
        range(3),
        make_quantizer(),
        guidance=None if scale == 1 else lambda moment: scale,
    ).codes(steps.append)
    return torch.cat([step.logits for step in steps], dim=1)


@every_kind
@pytest.mark.parametrize("variant", CHOSEN, ids=lambda each: each.name)
def test_guidance_of_0_is_the_unconditional_model_and_of_1_the_conditional_one(
    variant: Variant, kind: str
) -> None:
    prompts = encoded(kind)
    conditional = logits(variant, kind, prompts, 1)
    unconditional = logits(variant, kind, torch.full_like(prompts, ABSENT), 1)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(logits(variant, kind, prompts, 1 - 1e-9), conditional, **close)
    torch.testing.assert_close(logits(variant, kind, prompts, 0), unconditional, **close)
    assert torch.equal(conditional[1], unconditional[1])  # whose prompt is none
    if kind != "none":
        assert not torch.allclose(conditional[0], unconditional[0])


@every_kind
@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_a_share_of_prompts_is_dropped_as_a_whole(
    kind: str, dropout: float, code_shards: Path, tmp_path: Path
) -> None:
    captions = ("a green three moving left", "a red seven")
    replace(make_features(), captions=captions).save(tmp_path / FEATURES_FILE)
    condition = ConditionConfig(kind=kind, dropout=dropout, model="none")  # type: ignore[arg-type]
    task = GeneratorTask(generator_run(code_shards, tmp_path, condition=condition), "cpu")
    rows = torch.cat([task._prompts(task.loader.batch(step), step) for step in range(40)])
    if kind == "none":
        assert rows.shape == (240, 0)
        return
    absent = (rows == ABSENT).all(dim=1)
    assert abs(float(absent.float().mean()) - dropout) < 0.12
    assert (rows[~absent, 0] != ABSENT).all()


@torch.no_grad()
def test_pieces_of_a_caption_that_are_not_there_are_not_seen() -> None:
    generator = make_generator(CHOSEN[0], "clip_text")
    told = make_features()
    found = generator.condition(encoded("clip_text"))
    assert found.valid.sum(dim=1).tolist() == [5, 0, 7]
    assert torch.equal(found.pooled[1], generator.condition.absent)
    known = known_of(generator, random_codes(generator.schedule))
    expected = generator.by_cell(known, encoded("clip_text"), generator.schedule)
    changed = told.pieces.clone()
    changed[5:] += 1  # the other caption's
    generator.condition.told = told.__class__(**{**vars(told), "pieces": changed})
    found_logits = generator.by_cell(known, encoded("clip_text"), generator.schedule)
    assert torch.equal(found_logits[:2], expected[:2])
    assert not torch.equal(found_logits[2], expected[2])
    assert found_logits.shape[-1] == CODEBOOK_SIZE


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    told = make_features()
    told.save(tmp_path / "captions.safetensors")
    found = load_features(tmp_path / "captions.safetensors")
    assert (found.captions, found.model, found.sha256) == (told.captions, told.model, told.sha256)
    rows, valid = found.extended(told).padded(torch.tensor([1, 2]), 7)
    assert valid.sum(dim=1).tolist() == [7, 5]
    assert np.array_equal(rows[0], told.pieces[5:])
    assert np.array_equal(rows[1, :5], told.pieces[:5])
