"""Editing by known cells: what is given comes back, is seen, and costs no step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.generators import (
    CASES,
    CODEBOOK_SIZE,
    VARIANTS,
    Variant,
    encoded,
    make_generator,
    make_quantizer,
    random_codes,
    shared_generator,
)
from training.config import GuidanceConfig, SampleConfig
from training.given import Given, passes
from training.sampler import Step, layout_of, sampling

GUIDED = SampleConfig(guidance=GuidanceConfig(kind="linear", scale=2.0))
UNGUIDED = SampleConfig(guidance=GuidanceConfig(scale=1.0))
BY_NAME = {variant.name: variant for variant in VARIANTS}
FIXED = [variant for variant in VARIANTS if "random" not in variant.name + variant.method.inner]
FIXED = [variant for variant in FIXED if variant.method.name != "arpg"]
RANDOM = [variant for variant in VARIANTS if variant not in FIXED]
EACH_METHOD = [BY_NAME[name] for name in ("next_scale", "raster", "par", "nar", "arpg")]


def variants(chosen: list[Variant]) -> Any:
    return pytest.mark.parametrize("variant", chosen, ids=lambda each: each.name)


def generate(
    variant: Variant, block: str = "default", kind: str = "class", **more: Any
) -> tuple[Tensor, list[Step]]:
    """Three clips, guided where there is a condition, and what was shown of each step."""
    steps: list[Step] = []
    codes = sampling(
        shared_generator(variant, kind, block),
        encoded(kind),
        variant.schedule,
        UNGUIDED if kind == "none" else GUIDED,
        range(3),
        make_quantizer(),
        **more,
    ).codes(steps.append)
    return codes, steps


def some_cells(variant: Variant, share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(5).random(variant.schedule.num_tokens) < share


@pytest.mark.parametrize(
    ("variant", "block"),
    [(each, "default") for each in VARIANTS] + [(each, "rope") for each in EACH_METHOD],
    ids=str,
)
def test_given_cells_come_back_with_a_cache_and_without(variant: Variant, block: str) -> None:
    given = Given(random_codes(variant.schedule), some_cells(variant))
    fast, steps = generate(variant, block, given=given)
    slow, _ = generate(variant, block, given=given, cached=False)
    assert torch.equal(fast, slow)
    assert torch.equal(fast[:, given.cells], given.codes[:, given.cells])
    drawn = np.concatenate([step.cells[0] for step in steps])
    assert not given.cells[drawn].any()
    assert len(drawn) == (~given.cells).sum()
    assert len(fast[:, ~given.cells].unique()) > 2


def cells_of_frame(variant: Variant, frame: int) -> np.ndarray:
    """The cells of the scales that stand for a latent frame, of a grid's own slice alone."""
    schedule, cells = variant.schedule, []
    for scale in schedule.scales:
        frames = scale.t0 + np.arange(scale.t) * (scale.t1 - scale.t0) // scale.t
        cells.append(np.repeat(frames == frame, scale.h * scale.w))
    return np.concatenate(cells)


def middle_of(variant: Variant) -> np.ndarray:
    """The middle third of the cells as they are stored."""
    at = np.arange(variant.schedule.num_tokens) * 3 // variant.schedule.num_tokens
    return at == 1


REGIONS = {
    "a frame": lambda variant: cells_of_frame(variant, variant.schedule.num_latent_frames // 2),
    "all but a frame": lambda variant: ~cells_of_frame(variant, 0),
    "the middle": middle_of,
    "all but the middle": lambda variant: ~middle_of(variant),
}


@pytest.mark.parametrize(
    ("turn", "variant", "kind", "block"),
    [(number % 2, *case) for number, case in enumerate(CASES)],
    ids=str,
)
def test_frames_and_middles_come_back_under_every_condition(
    turn: int, variant: Variant, kind: str, block: str
) -> None:
    """Two of the regions in turn: every variant and every condition meets all of them."""
    for name in list(REGIONS)[turn::2]:
        given = Given(random_codes(variant.schedule), REGIONS[name](variant))
        codes, steps = generate(variant, block, kind, given=given)
        assert torch.equal(codes[:, given.cells], given.codes[:, given.cells])
        drawn = np.concatenate([np.zeros(0, int), *(step.cells[0] for step in steps)])
        assert (np.sort(drawn) == np.flatnonzero(~given.cells)).all()


@variants(VARIANTS)
def test_with_nothing_given_it_is_plain_sampling(variant: Variant) -> None:
    given = Given(random_codes(variant.schedule), some_cells(variant, 0))
    assert torch.equal(generate(variant, given=given)[0], generate(variant)[0])


@variants(VARIANTS)
def test_with_everything_given_nothing_is_drawn(variant: Variant) -> None:
    given = Given(random_codes(variant.schedule), some_cells(variant, 2))
    codes, steps = generate(variant, given=given)
    assert torch.equal(codes, given.codes)
    assert not steps


@variants(VARIANTS)
def test_what_is_not_given_is_not_looked_at(variant: Variant) -> None:
    cells, codes = some_cells(variant), random_codes(variant.schedule)
    others = codes.clone()
    others[:, ~cells] = CODEBOOK_SIZE - 1 - others[:, ~cells]
    found, expected = (generate(variant, given=Given(each, cells))[0] for each in (others, codes))
    assert torch.equal(found, expected)


@variants(FIXED)
def test_a_sample_that_is_given_cells_of_its_own_stays_as_it_is(variant: Variant) -> None:
    codes, _ = generate(variant)
    found, _ = generate(variant, given=Given(codes, some_cells(variant, 0.4)))
    assert torch.equal(found, codes)


@variants(FIXED)
def test_a_beginning_comes_in_by_one_pass(variant: Variant) -> None:
    codes, plain = generate(variant)
    order = shared_generator(variant, "class").layout_for(variant.schedule).order
    begun = order.num_steps // 2
    found, steps = generate(variant, given=Given(codes, order.step_of_cell <= begun))
    assert torch.equal(found, codes)
    assert [step.number for step in steps] == list(range(begun, order.num_steps))
    for step, expected in zip(steps, plain[begun:], strict=True):
        torch.testing.assert_close(step.logits, expected.logits, atol=1e-4, rtol=1e-4)
        assert step.scale == expected.scale


@variants(RANDOM)
def test_a_random_order_that_is_given_its_first_cells_goes_on_as_step_by_step(
    variant: Variant,
) -> None:
    variant = replace(variant, method=replace(variant.method, num_steps=None))
    order = shared_generator(variant, "class").layout_for(variant.schedule).order
    sequence = torch.from_numpy(order.drawn(np.random.default_rng(3)))[None]
    codes, _ = generate(variant, sequence=sequence)
    cells = np.zeros(variant.schedule.num_tokens, dtype=bool)
    cells[sequence[0, : len(cells) // 2]] = True
    found, steps = generate(variant, sequence=sequence, given=Given(codes, cells))
    assert torch.equal(found, codes)
    assert len(steps) < order.num_steps


@variants(RANDOM)
def test_random_orders_share_their_steps_out_over_what_is_not_given(variant: Variant) -> None:
    cells = some_cells(variant)
    generator = shared_generator(variant, "none")
    layout = generator.layout_for(variant.schedule, training=False, given=cells)
    sizes = [len(each.places) for each in passes(layout, cells)]
    assert sum(sizes) == (~cells).sum()
    if variant.name == "arpg":
        assert len(sizes) == variant.method.num_steps


def seen_by_others(name: str, cell: int) -> bool:
    """Whether the code of one given cell changes what is generated at others."""
    variant = BY_NAME[name]
    cells = np.zeros(variant.schedule.num_tokens, dtype=bool)
    cells[cell] = True
    codes = random_codes(variant.schedule)
    changed = codes.clone()
    changed[:, cell] = (changed[:, cell] + 1) % CODEBOOK_SIZE
    first, second = (generate(variant, given=Given(each, cells))[1] for each in (codes, changed))
    return any(not torch.equal(a.logits, b.logits) for a, b in zip(first, second, strict=True))


def test_a_random_order_sees_what_is_given_behind_a_cell_and_a_fixed_one_does_not() -> None:
    assert seen_by_others("arpg", -1)
    assert not seen_by_others("raster", -1)
    assert seen_by_others("raster", 0)


def test_one_clip_is_given_to_all() -> None:
    variant = BY_NAME["arpg"]
    given = Given(random_codes(variant.schedule)[:1], some_cells(variant))
    codes, _ = generate(variant, given=given)
    assert (codes[:, given.cells] == given.codes[:, given.cells]).all()


def test_given_cells_must_fit_codes_and_sequence() -> None:
    variant = BY_NAME["arpg"]
    codes = random_codes(variant.schedule)
    with pytest.raises(ValueError, match="one for each of"):
        Given(codes, some_cells(variant)[1:])
    cells = some_cells(variant)
    with pytest.raises(ValueError, match="must have the places"):
        generate(variant, given=Given(codes, cells), sequence=torch.arange(len(cells))[None])


@variants(EACH_METHOD)
def test_the_layout_for_given_cells_is_made_once(variant: Variant) -> None:
    cells = some_cells(variant)
    first, again, other = (
        layout_of(
            make_generator(variant, "class"),
            variant.schedule,
            GUIDED,
            Given(random_codes(variant.schedule, seed)[:1], chosen),
        )
        for seed, chosen in ((0, cells), (1, cells.copy()), (2, ~cells))
    )
    assert first is again
    assert first is not other
