"""Orders on schedules: every cell once, steps as in the papers."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from tokenizer.scales import Schedule, image_and_clip, single_grid
from tokenizer.settings import UserError
from training.order import Inner, Order, over_grid, over_scales
from training.step_sizes import SIZES

PYRAMIDS = [
    image_and_clip(3, (1, 2, 4)),
    image_and_clip(5, (1, 4), (2, 4), clip_latent_frames=2),
    image_and_clip(1, (1, 2, 3)),
]
GRIDS = [single_grid(2, 4, 6), single_grid(1, 6, 4), image_and_clip(3, (4,))]
INNER = [
    Inner("all"),
    Inner("raster"),
    Inner("par", regions=(1, 1, 1)),
    Inner("nar"),
    Inner("nar", frame_causal=True),
    Inner("random", num_steps=5),
    Inner("random", num_steps=5, sizes="cosine", frame_causal=True),
]
PAR = [Inner("par", regions=(1, 2, 2), starts_alone=alone) for alone in (False, True)]


def check(order: Order) -> None:
    places = np.concatenate([order.places(step + 1) for step in range(order.num_steps)])
    assert places.tolist() == list(range(order.schedule.num_tokens))
    for seed in range(3):
        drawn = order.drawn(np.random.default_rng(seed))
        assert sorted(drawn.tolist()) == places.tolist()
        scale_of = order.schedule.scale_of_token[drawn]
        if order.schedule.grid is None:
            assert (np.diff(scale_of) >= 0).all()


@pytest.mark.parametrize("schedule", PYRAMIDS + GRIDS)
@pytest.mark.parametrize("inner", INNER)
def test_every_cell_is_generated_once_and_scales_follow_one_another(
    schedule: Schedule, inner: Inner
) -> None:
    check(over_scales(schedule, lambda scale: inner))


@pytest.mark.parametrize("schedule", GRIDS)
@pytest.mark.parametrize("inner", INNER + PAR)
def test_every_cell_of_a_grid_is_generated_once(schedule: Schedule, inner: Inner) -> None:
    check(over_grid(schedule, inner))


def test_the_number_of_steps_is_that_of_the_papers() -> None:
    video = single_grid(5, 16, 16)

    def steps(inner: Inner, schedule: Schedule = video) -> int:
        return over_grid(schedule, inner).num_steps

    assert steps(Inner("raster")) == 1280
    assert steps(Inner("par", regions=(1, 2, 2), starts_alone=True)) == 323
    assert steps(Inner("par", regions=(1, 4, 4), starts_alone=True)) == 95
    assert steps(Inner("nar")) == 5 + 16 + 16 - 2
    assert steps(Inner("nar"), single_grid(4, 16, 16)) == 34
    assert steps(Inner("nar", frame_causal=True)) == 5 * 31
    assert steps(Inner("random", num_steps=32)) == 32
    assert steps(Inner("random")) == 1280
    image = single_grid(1, 24, 24)
    assert steps(Inner("par", regions=(1, 2, 2), starts_alone=True), image) == 147
    assert steps(Inner("par", regions=(1, 4, 4), starts_alone=True), image) == 51
    for schedule in PYRAMIDS:
        assert over_scales(schedule, lambda scale: Inner("all")).num_steps == len(schedule.scales)


def test_par_takes_the_same_cell_of_every_region() -> None:
    order = over_grid(single_grid(1, 4, 4), Inner("par", regions=(1, 2, 2), starts_alone=True))
    rows = [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert order.sequence.tolist() == rows
    assert order.sizes == (1, 1, 1, 1, 4, 4, 4)


def test_nar_takes_all_cells_at_one_distance() -> None:
    order = over_grid(single_grid(2, 3, 3), Inner("nar"))
    assert order.sizes == (1, 3, 5, 5, 3, 1)
    table = order.step_of_cell.reshape(2, 3, 3)
    assert (table == 1 + np.indices((2, 3, 3)).sum(axis=0)).all()


def test_frame_causal_orders_finish_a_frame_before_the_next() -> None:
    order = over_grid(single_grid(3, 2, 2), Inner("nar", frame_causal=True))
    frames = order.step_of_cell.reshape(3, 4)
    assert (frames.max(axis=1)[:-1] < frames.min(axis=1)[1:]).all()


def test_step_sizes_are_those_of_the_paper() -> None:
    assert SIZES["arccos"](256, 64)[:5] == (3, 3, 2, 3, 2)
    assert SIZES["arccos"](256, 64)[-4:] == (7, 10, 12, 28)
    assert SIZES["arccos"](256, 8) == (21, 21, 21, 23, 25, 28, 35, 82)
    assert SIZES["arccos"](16, 4) == (3, 3, 3, 7)
    assert SIZES["cosine"](16, 4) == (2, 3, 5, 6)


@pytest.mark.parametrize("kind", SIZES)
def test_any_number_of_steps_has_cells_in_each(kind: str) -> None:
    for num_cells in (1, 2, 7, 64, 100):
        for num_steps in range(1, num_cells + 1):
            sizes = SIZES[kind](num_cells, num_steps)  # type: ignore[index]
            assert len(sizes) == num_steps
            assert min(sizes) >= 1
            assert sum(sizes) == num_cells


def test_a_random_order_is_drawn_for_each_sample_and_only_inside_its_scale() -> None:
    schedule = image_and_clip(1, (1, 4))
    order = over_scales(schedule, lambda scale: Inner("random" if scale.h > 1 else "all"))
    first, second = (order.drawn(np.random.default_rng(seed)) for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert first[0] == second[0] == 0


def test_an_order_that_misses_a_cell_is_refused() -> None:
    schedule = single_grid(1, 1, 3)
    with pytest.raises(ValueError, match="must come once"):
        Order("broken", schedule, np.array([0, 1, 1]), (3,))
    with pytest.raises(ValueError, match="must have cells"):
        Order("broken", schedule, np.array([0, 1, 2]), (2, 0, 1))


def test_regions_that_do_not_divide_the_grid_are_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"3 regions do not divide 4 cells of axis h; .* 1, 2, 4"):
        over_grid(single_grid(1, 4, 6), Inner("par", regions=(1, 3, 2)))


def test_an_order_over_a_grid_is_refused_for_a_pyramid() -> None:
    with pytest.raises(UserError, match="needs codes on one grid"):
        over_grid(PYRAMIDS[0], Inner("nar"))


def test_the_fingerprint_tells_orders_apart() -> None:
    schedule = single_grid(1, 4, 4)
    orders = [
        over_grid(schedule, inner) for inner in (INNER[0], INNER[1], INNER[3], INNER[5], *PAR)
    ]
    assert len({order.fingerprint for order in orders}) == len(orders)


def test_what_is_one_grid_is_told_from_a_pyramid() -> None:
    assert image_and_clip(3, (4,)).grid == (3, 4, 4)
    assert single_grid(2, 4, 6).grid == (2, 4, 6)
    assert image_and_clip(3, (2, 4)).grid is None
    assert prod(image_and_clip(5, (3,), clip_latent_frames=2).grid or ()) == 45
