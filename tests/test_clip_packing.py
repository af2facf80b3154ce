"""Clips of several shapes in one sequence: each is answered, and learned from, as if alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import training.packing
from tests.generators import (
    BLOCKS,
    CASES,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    random_codes,
)
from tokenizer.scales import Schedule
from training.attention import block_mask
from training.generator import Generator, Known

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
Clips = tuple[Known, Tensor, Schedule]


def some_clips(generator: Generator, variant: Variant, kind: str) -> list[Clips]:
    """Three clips of the whole schedule, and two of a beginning of it where the method has one."""
    schedule, prompts = variant.schedule, encoded(kind)
    clips = [(known_of(generator, random_codes(schedule)), prompts, schedule)]
    image = Schedule(schedule.pyramids[0])
    if schedule.num_latent_frames > 1 and variant.name not in ("par-time", "par-all"):
        known = known_of(generator, random_codes(image, seed=3)[:2], schedule=image)
        clips.append((known, prompts[[2, 1]], image))
    return clips


def loss_of(logits: list[Tensor], clips: list[Clips]) -> Tensor:
    return sum(
        (F.cross_entropy(each.flatten(0, 1), known.codes.flatten(), reduction="sum")
         for each, (known, _, _) in zip(logits, clips)),
        torch.zeros(()),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "kind", "block"), [each for each in CASES if each[2] != "dropout"], ids=str
)
def test_packed_clips_have_the_logits_and_gradients_of_separate_ones(
    variant: Variant, kind: str, block: str
) -> None:
    generator = make_generator(variant, kind, BLOCKS[block])
    clips = some_clips(generator, variant, kind)
    gradients = []
    answers = []
    for logits in ([generator.by_cell(*each) for each in clips], generator.packed(clips)):
        generator.zero_grad(set_to_none=True)
        loss_of(logits, clips).backward()
        answers.append([each.detach() for each in logits])
        gradients.append({name: each.grad for name, each in generator.named_parameters()})
    for separate, packed in zip(*answers):
        torch.testing.assert_close(packed, separate, atol=1e-4, rtol=1e-4)
    for name, expected in gradients[0].items():
        found = gradients[1][name]
        assert (found is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3, msg=name)


@every_variant
@torch.no_grad()
def test_a_clip_changes_nothing_for_those_packed_with_it(variant: Variant) -> None:
    generator = make_generator(variant, "text")
    clips = some_clips(generator, variant, "text")
    (known, prompts, schedule), others = clips[0], clips[1:]
    before = generator.packed(clips)
    codes = known.codes.clone()
    codes[1] = (codes[1] + 1) % 16
    features = None
    if known.features is not None:
        features = known.features.clone()
        features[1] += 1.0
    after = generator.packed([(Known(known.sequence, codes, features), prompts, schedule), *others])
    assert not torch.allclose(after[0][1], before[0][1])
    for found, expected in zip(after[1:], before[1:]):
        assert torch.equal(found, expected)
    assert torch.equal(after[0][[0, 2]], before[0][[0, 2]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["nar", "arpg"])
@torch.no_grad()
def test_packed_clips_are_answered_alike_under_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (variant,) = (each for each in VARIANTS if each.name == name)
    generator = make_generator(variant, "text", BLOCKS["rope"])
    clips = some_clips(generator, variant, "text")
    expected = generator.packed(clips)
    monkeypatch.setattr(training.packing, "make_mask", block_mask)
    for found, one in zip(generator.packed(clips), expected):
        torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)
