"""Orders and layouts of any shape and setting: each cell once, nothing sees the future."""

from __future__ import annotations

from itertools import chain, pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_layout import latest_step_behind, slow_visible
from tokenizer.scales import PRESETS, Schedule, image_and_clip, preset_schedule, single_grid
from tokenizer.settings import UserError, read_settings
from training.layout import Layout
from training.method_config import MethodConfig
from training.methods import METHODS
from training.order import Inner, Order, over_grid, over_scales
from training.orders_cli import OrderSettings

many = settings(max_examples=60, deadline=None)


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


@st.composite
def grids(draw: st.DrawFn, most: int = 6) -> tuple[int, int, int]:
    return draw(st.integers(1, 4)), draw(st.integers(1, most)), draw(st.integers(1, most))


@st.composite
def pyramids(draw: st.DrawFn) -> Schedule:
    sides = sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3)))
    others = draw(st.none() | st.just(sides[-1:]) | st.just(sides[len(sides) // 2 :]))
    frames = draw(st.integers(1, 4))
    return image_and_clip(frames, sides, others, draw(st.none() | st.integers(1, 3)))


@st.composite
def inside(draw: st.DrawFn, shape: tuple[int, int, int]) -> Inner:
    """Any inner order that fits a grid."""
    kind = draw(st.sampled_from(["all", "raster", "par", "nar", "random"]))
    causal = draw(st.booleans())
    if kind == "par":
        regions = [draw(st.sampled_from(divisors(1 if causal and not axis else size)))
                   for axis, size in enumerate(shape)]  # fmt: skip
        return Inner("par", tuple(regions), draw(st.booleans()), frame_causal=causal)  # type: ignore[arg-type]
    steps = draw(st.none() | st.integers(1, 40)) if kind == "random" else None
    sizes = draw(st.sampled_from(["arccos", "cosine", "uniform"]))
    return Inner(kind, num_steps=steps, sizes=sizes, frame_causal=causal)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """The layout of any method, with settings and a schedule that fit one another."""
    name = draw(st.sampled_from(list(METHODS)))
    on_pyramid = name == "next_scale" or (name == "raster" and draw(st.booleans()))
    schedule = draw(pyramids()) if on_pyramid else single_grid(*draw(grids(4)))
    more: dict[str, Any] = {}
    if name == "par":
        more["regions"] = tuple(draw(st.sampled_from(divisors(n))) for n in schedule.grid or ())
    if name in ("nar", "arpg"):
        more["frame_causal"] = draw(st.booleans())
    if name == "next_scale":
        more["inner"] = draw(st.sampled_from(["all", "raster", "par", "nar", "random"]))
        if more["inner"] == "par":
            more["regions"] = (1, 1, 1)
        if more["inner"] != "all":
            more["inner_cells"] = draw(st.sampled_from([1, 4, 9]))
            more["frame_causal"] = draw(st.booleans())
    if name == "arpg" or more.get("inner") == "random":
        more["num_steps"] = draw(st.none() | st.integers(1, 9))
        more["sizes"] = draw(st.sampled_from(["arccos", "cosine", "uniform"]))
    method = MethodConfig(name=name, **more)
    return METHODS[name](schedule, draw(st.integers(0, 3)), method, draw(st.booleans()))


def check_cells(order: Order, drawn_seed: int = 0) -> None:
    """Each cell has a place of its own, places are cut into steps, scales follow one another."""
    num_cells = order.schedule.num_tokens
    drawn = order.drawn(np.random.default_rng(drawn_seed))
    assert sorted(order.sequence.tolist()) == sorted(drawn.tolist()) == list(range(num_cells))
    places = [order.places(step + 1).tolist() for step in range(order.num_steps)]
    assert list(chain(*places)) == list(range(num_cells))
    assert all(places)
    steps = np.empty_like(order.step)
    steps[drawn] = order.step
    for before, after in pairwise(order.schedule.split(steps)):
        assert before.max() < after.min()


def frames_follow(order: Order, drawn_seed: int) -> bool:
    """Whether every frame of every scale is finished before the next one begins."""
    steps = np.empty_like(order.step)
    steps[order.drawn(np.random.default_rng(drawn_seed))] = order.step
    return all(
        before.max() < after.min()
        for table in order.schedule.split(steps)
        for before, after in pairwise(table)
    )


@many
@given(st.data())
def test_each_cell_of_a_grid_comes_once(data: st.DataObject) -> None:
    shape = data.draw(grids())
    inner = data.draw(inside(shape))
    order = over_grid(single_grid(*shape), inner)
    check_cells(order, data.draw(st.integers(0, 99)))
    assert not inner.frame_causal or frames_follow(order, 1)


@many
@given(st.data())
def test_each_cell_of_a_pyramid_comes_once_and_after_all_coarser_scales(
    data: st.DataObject,
) -> None:
    schedule = data.draw(pyramids())
    inner_of = {scale: data.draw(inside(scale.shape)) for scale in schedule.scales}
    order = over_scales(schedule, inner_of.__getitem__)
    check_cells(order, data.draw(st.integers(0, 99)))
    if all(inner.frame_causal for inner in inner_of.values()):
        assert frames_follow(order, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_published_schedules_are_generated_a_scale_a_step(name: str) -> None:
    for frames in (1, 5):
        schedule = preset_schedule(name, frames)
        order = over_scales(schedule, lambda scale: Inner("all"))
        check_cells(order)
        assert order.num_steps == sum(len(pyramid) for pyramid in schedule.pyramids)


@many
@given(layouts())
def test_no_place_is_predicted_from_what_comes_with_it_or_later(layout: Layout) -> None:
    rows = range(layout.num_rows)
    latest = np.array([latest_step_behind(layout, row) for row in rows])
    step, role = layout.step.tolist(), layout.role.tolist()
    for row in np.unique(layout.source[layout.source >= 0]).tolist():
        seen = [
            other
            for other in rows
            if slow_visible(step[row], role[row], step[other], role[other], layout.queries_meet)
        ]
        asked = layout.order.step[(layout.source == row).any(axis=1)]
        assert latest[[*seen, row]].max() < asked.min()


@many
@given(layouts())
def test_every_row_is_fed_once_and_in_time(layout: Layout) -> None:
    fed = [layout.fed(loop_step).tolist() for loop_step in range(layout.order.num_steps)]
    assert sorted(chain(*fed)) == list(range(layout.num_rows))
    for places in (layout.due(loop_step) for loop_step in range(layout.order.num_steps)):
        assert (layout.source[places].max(axis=1) >= 0).all()


@many
@given(st.data())
def test_the_number_of_steps_is_that_of_the_formulas(data: st.DataObject) -> None:
    t, h, w = shape = data.draw(grids())
    schedule, num_cells = single_grid(*shape), t * h * w
    regions = tuple(data.draw(st.sampled_from(divisors(size))) for size in shape)
    asked = data.draw(st.integers(1, 300))

    def steps(name: str, **more: Any) -> int:
        method = MethodConfig(name=name, **more)  # type: ignore[arg-type]
        return METHODS[name](schedule, 0, method, False).order.num_steps

    assert steps("raster") == num_cells
    assert steps("par", regions=regions) == num_cells // prod(regions) + prod(regions) - 1
    assert steps("nar") == t + h + w - 2
    assert steps("nar", frame_causal=True) == t * (h + w - 1)
    assert steps("arpg") == num_cells
    assert steps("arpg", num_steps=asked) == min(asked, num_cells)
    assert steps("arpg", num_steps=asked, frame_causal=True) == t * min(asked, h * w)
    assert steps("next_scale") == 1


@many
@given(pyramids(), st.integers(1, 30))
def test_inner_orders_take_their_steps_in_every_large_scale(schedule: Schedule, large: int) -> None:
    def steps(inner: str, **more: Any) -> int:
        method = MethodConfig(name="next_scale", inner=inner, inner_cells=large, **more)  # type: ignore[arg-type]
        return METHODS["next_scale"](schedule, 2, method, True).order.num_steps

    sizes = [each.shape if each.num_tokens >= large else (1, 1, 1) for each in schedule.scales]
    assert steps("nar") == sum(sum(shape) - 2 for shape in sizes)
    assert steps("raster") == sum(map(prod, sizes))
    assert steps("random", num_steps=3) == sum(min(3, prod(shape)) for shape in sizes)


@many
@given(st.data())
def test_par_and_nar_are_their_definitions(data: st.DataObject) -> None:
    shape = data.draw(grids())
    schedule = single_grid(*shape)
    regions = tuple(data.draw(st.sampled_from(divisors(size))) for size in shape)
    par = over_grid(schedule, Inner("par", regions, starts_alone=True))  # type: ignore[arg-type]
    nar = over_grid(schedule, Inner("nar"))
    tables = par.step_of_cell.reshape(shape), nar.step_of_cell.reshape(shape)
    sides = [size // count for size, count in zip(shape, regions)]
    for cell in np.ndindex(*shape):
        region = [at // side for at, side in zip(cell, sides)]
        number = (region[0] * regions[1] + region[1]) * regions[2] + region[2]
        at = [here % side for here, side in zip(cell, sides)]
        position = (at[0] * sides[1] + at[1]) * sides[2] + at[2]
        expected = number if position == 0 else prod(regions) - 1 + position
        assert tables[0][cell] == 1 + expected
        assert tables[1][cell] == 1 + sum(cell)


PYRAMID, GRID = image_and_clip(3, (1, 2, 4)), single_grid(3, 4, 6)
IMPOSSIBLE = [
    (GRID, {"name": "magic"}, "must be one of next_scale, raster, par, nar, arpg"),
    (GRID, {"name": "par", "regions": [1, 3, 2]}, "3 regions do not divide 4 cells of axis h"),
    (GRID, {"name": "par", "regions": [2, 2, 2]}, "2 regions do not divide 3 cells of axis t"),
    (GRID, {"name": "par", "regions": [0, 2, 2]}, "must be three numbers of at least 1"),
    (GRID, {"name": "par", "regions": [2, 2]}, "regions"),
    (PYRAMID, {"name": "par"}, "needs codes on one grid"),
    (PYRAMID, {"name": "nar"}, "needs codes on one grid"),
    (PYRAMID, {"name": "arpg"}, "needs codes on one grid"),
    (
        PYRAMID,
        {"name": "next_scale", "inner": "par", "regions": [1, 3, 1], "inner_cells": 4},
        "3 regions do not divide 2 cells of axis h",
    ),
    (GRID, {"name": "arpg", "num_steps": 0}, "num_steps (0) must be at least 1"),
    (GRID, {"name": "arpg", "sizes": "linear"}, "must be one of arccos, cosine, uniform"),
    (PYRAMID, {"name": "next_scale", "inner": "spiral"}, "must be one of all, raster, par"),
    (PYRAMID, {"name": "next_scale", "inner": "nar", "inner_cells": 0}, "must be at least 1"),
    (GRID, {"name": "nar", "regions": [1, 4, 4]}, "is for par, inner par; nar has no use for it"),
    (GRID, {"name": "nar", "num_steps": 4}, "is for arpg, inner random; nar has no use for it"),
    (GRID, {"name": "raster", "inner": "nar"}, "is for next_scale; raster has no use for it"),
    (GRID, {"name": "par", "frame_causal": True}, "is for nar, arpg, inner; par has no use"),
    (PYRAMID, {"name": "next_scale", "frame_causal": True}, "next_scale with inner all has no use"),
    (PYRAMID, {"name": "next_scale", "sizes": "uniform"}, "next_scale with inner all has no use"),
]


@pytest.mark.parametrize(("schedule", "method", "expected"), IMPOSSIBLE)
def test_an_impossible_setting_is_one_clear_error(
    schedule: Schedule, method: dict[str, Any], expected: str
) -> None:
    def make() -> Layout:
        flags = {f"method.{key}": value for key, value in method.items()}
        config = read_settings(OrderSettings, None, flags).method
        return METHODS[config.name](schedule, 0, config, True)

    with pytest.raises(UserError) as caught:
        make()
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
