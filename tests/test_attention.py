"""The mask rule: dense, in blocks and by its definition, all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

import training.fed_rows
from tests.generators import (
    BLOCKS,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    random_codes,
)
from tests.test_layout import slow_visible
from tokenizer.scales import Schedule, image_and_clip, single_grid
from training.attention import BLOCK, Sight, attend, block_mask, dense_mask, make_mask
from training.generator import Known
from training.layout import Layout, Role
from training.method_config import MethodConfig
from training.methods import METHODS

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
GRID = single_grid(2, 9, 16)
LARGE = [
    (MethodConfig(name="raster"), GRID),
    (MethodConfig(name="par", regions=(1, 3, 4)), GRID),
    (MethodConfig(name="nar"), GRID),
    (MethodConfig(name="arpg", num_steps=9), GRID),
    (MethodConfig(name="next_scale"), image_and_clip(2, (1, 4, 8, 12))),
    (MethodConfig(name="next_scale", inner="nar"), image_and_clip(1, (1, 4, 12))),
]
"""Layouts of several blocks."""


def sight_of(layout: Layout, clip: Tensor | None = None) -> Sight:
    return Sight(torch.from_numpy(layout.step), torch.from_numpy(layout.role), clip)


def slow_mask(i: Sight, j: Sight, queries_meet: bool) -> Tensor:
    """The definition, pair by pair, for sample 0."""
    table = torch.zeros(len(i.step), len(j.step), dtype=torch.bool)
    for a, b in np.ndindex(*table.shape):
        rows = int(i.step[a]), int(i.role[a]), int(j.step[b]), int(j.role[b])
        alike = i.clip is None or j.clip is None or bool(i.clip[0, a] == j.clip[0, b])
        table[a, b] = alike and slow_visible(*rows, queries_meet)
    return table


def block_table(mask: BlockMask, which: str) -> Tensor:
    """Which blocks are listed as `partial` or `full`, bool [q, k]."""
    counts, indices = (
        (mask.kv_num_blocks, mask.kv_indices)
        if which == "partial"
        else (mask.full_kv_num_blocks, mask.full_kv_indices)
    )
    assert counts is not None
    assert indices is not None
    table = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, count in enumerate(counts[0, 0].tolist()):
        table[row, indices[0, 0, row, :count].long()] = True
    return table


@pytest.mark.parametrize("queries_meet", [True, False])
def test_the_rule_is_the_definition_for_every_pair_of_steps_roles_and_clips(
    queries_meet: bool,
) -> None:
    rows = [
        (step, role, clip)
        for step in range(4)
        for role in (Role.CONTEXT, Role.QUERY)
        for clip in (-1, 0, 1)
    ]
    step, role, clip = torch.tensor([[int(value) for value in row] for row in rows]).T
    for clips in (None, clip[None]):
        sight = Sight(step, role, clips)
        found = dense_mask(sight, sight, queries_meet)[0, 0]
        assert torch.equal(found, slow_mask(sight, sight, queries_meet))


@every_variant
def test_a_dense_mask_of_the_last_rows_is_the_end_of_the_whole_mask(variant: Variant) -> None:
    sight = sight_of(METHODS[variant.method.name](variant.schedule, 3, variant.method, True))
    last = dense_mask(sight.rows(slice(-4, None)), sight)
    assert torch.equal(last, dense_mask(sight, sight)[:, :, -4:])


def test_padding_is_seen_by_nothing_else_and_sees_itself() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    sight = Sight(zeros, zeros, torch.tensor([[0, -1, 0]]))
    table = [[True, False, True], [False, True, False], [True, False, True]]
    assert dense_mask(sight, sight)[0, 0].tolist() == table


def test_no_mask_is_needed_where_everything_is_seen() -> None:
    step, role = torch.tensor([0, 1, 2, 2]), torch.zeros(4, dtype=torch.int64)
    sight = Sight(step, role)
    assert make_mask(sight.rows(slice(2, None)), sight) is None
    assert make_mask(sight, sight) is not None


@pytest.mark.parametrize(("method", "schedule"), LARGE, ids=lambda each: getattr(each, "name", ""))
@pytest.mark.parametrize("clips", ["one", "padded", "packed"])
def test_blocks_and_their_function_are_the_dense_mask(
    method: MethodConfig, schedule: Schedule, clips: str
) -> None:
    layout = METHODS[method.name](schedule, 5, method, True)
    random = np.random.default_rng(0)
    sight = sight_of(layout)
    if clips == "padded":
        clip = np.zeros((2, layout.num_rows), dtype=np.int64)
        clip[:, :5] = -random.integers(0, 2, (2, 5))
        sight = sight._replace(clip=torch.from_numpy(clip))
    if clips == "packed":
        clip = np.repeat(np.arange(3), [150, 10, layout.num_rows - 160])
        sight = sight._replace(clip=torch.from_numpy(clip)[None])
    length, meet = layout.num_rows, layout.queries_meet
    dense = dense_mask(sight, sight, meet)
    mask = block_mask(sight, sight, meet)
    assert isinstance(mask, BlockMask)
    made = create_mask(mask.mask_mod, len(dense), 1, length, length, device="cpu")
    assert torch.equal(made, dense)
    side = -(-length // BLOCK)
    padded = torch.zeros(len(dense), side * BLOCK, side * BLOCK, dtype=torch.bool)
    padded[:, :length, :length] = dense[:, 0]
    blocks = padded.unflatten(2, (side, BLOCK)).unflatten(1, (side, BLOCK)).transpose(2, 3)
    some, every = blocks.flatten(3).any(dim=3).any(dim=0), blocks.flatten(3).all(dim=3).all(dim=0)
    assert torch.equal(block_table(mask, "full"), every)
    assert torch.equal(block_table(mask, "partial"), some & ~every)


@eager_flex
@pytest.mark.parametrize(("method", "schedule"), LARGE, ids=lambda each: getattr(each, "name", ""))
@torch.no_grad()
def test_attention_under_blocks_is_attention_under_the_dense_mask(
    method: MethodConfig, schedule: Schedule
) -> None:
    torch.manual_seed(0)
    layout = METHODS[method.name](schedule, 5, method, True)
    sight = sight_of(layout, torch.tensor([[0] * 3 + [-1] * 2 + [0] * (layout.num_rows - 5)]))
    asked = sight
    if not layout.queries_meet:
        sight, asked = (
            sight.rows(slice(layout.num_context, None)),
            sight.rows(slice(layout.num_context)),
        )
    query, key, value = (torch.randn(2, 2, len(rows.step), 16) for rows in (sight, asked, asked))
    found, expected = (
        attend(query, key, value, make(sight, asked, layout.queries_meet), 0.25)
        for make in (block_mask, dense_mask)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@eager_flex
@pytest.mark.parametrize("name", ["next_scale-random", "nar", "arpg"])
@torch.no_grad()
def test_a_generator_answers_alike_under_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (variant,) = (each for each in VARIANTS if each.name == name)
    generator = make_generator(variant, "text", BLOCKS["rope"])
    known = known_of(generator, random_codes(variant.schedule))
    expected = generator.by_cell(known, encoded("text"), variant.schedule)
    monkeypatch.setattr(training.fed_rows, "make_mask", block_mask)
    found = generator.by_cell(known, encoded("text"), variant.schedule)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["none", "text"])
@pytest.mark.parametrize(("method", "schedule"), LARGE, ids=lambda each: getattr(each, "name", ""))
def test_a_generator_answers_and_learns_alike_on_cuda(
    method: MethodConfig, schedule: Schedule, kind: str
) -> None:
    logits, gradients = [], []
    for device in ("cpu", "cuda"):
        generator = make_generator(Variant("large", method, schedule), kind, width=32).to(device)
        known = known_of(generator, random_codes(schedule))
        features = None if known.features is None else known.features.to(device)
        known = Known(known.sequence.to(device), known.codes.to(device), features)
        found = generator.by_cell(known, encoded(kind).to(device), schedule)
        found.square().mean().backward()
        logits.append(found.detach().cpu())
        gradients.append(
            [each.grad.cpu() for each in generator.parameters() if each.grad is not None]
        )
    torch.testing.assert_close(*logits, atol=2e-3, rtol=2e-3)
    for both in zip(*gradients):
        torch.testing.assert_close(*both, atol=2e-3, rtol=2e-2)


@pytest.mark.gpu
def test_a_long_mask_on_cuda_takes_memory_in_its_length_only() -> None:
    length = 40_000
    step = torch.arange(length, device="cuda")
    sight = Sight(step, torch.zeros_like(step))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert isinstance(make_mask(sight, sight), BlockMask)
    assert torch.cuda.max_memory_allocated() - before < length * length // 20
