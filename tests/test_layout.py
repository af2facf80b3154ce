"""Layouts and the mask rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.generators import VARIANTS, Variant
from tokenizer.scales import Scale, Schedule, single_grid
from training.layout import Embedding, Layout, Role
from training.method_config import MethodConfig
from training.methods import METHODS

TALL = Schedule((Scale(0, 3, 1, 1, 2), Scale(0, 3, 3, 2, 4)))
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
either = pytest.mark.parametrize("training", [True, False], ids=["training", "sampling"])


def make_layout(variant: Variant, num_prefix: int, training: bool = True) -> Layout:
    make = METHODS[variant.method.name]
    return make(variant.schedule, num_prefix, variant.method, training)


def slow_visible(step_i: int, role_i: int, step_j: int, role_j: int, queries_meet: bool) -> bool:
    if role_i == Role.CONTEXT:
        return role_j == Role.CONTEXT and step_j <= step_i
    if role_j == Role.CONTEXT:
        return step_j < step_i
    return queries_meet and step_j == step_i


def sees(layout: Layout, row: int, other: int) -> bool:
    step, role = layout.step, layout.role
    return slow_visible(step[row], role[row], step[other], role[other], layout.queries_meet)


@either
@every_variant
def test_a_place_is_predicted_only_from_what_comes_before_it(
    variant: Variant, training: bool
) -> None:
    layout = make_layout(variant, 3, training)
    for place, sources in enumerate(layout.source):
        for row in sources[sources >= 0]:
            for other in range(layout.num_rows):
                if sees(layout, row, other):
                    assert latest_step_behind(layout, other) < layout.order.step[place]


def latest_step_behind(layout: Layout, row: int) -> int:
    """The step of the latest place whose code can be in this row's embedding."""
    place = layout.index[row]
    if layout.embedding[row] == Embedding.TOKEN:
        return int(layout.order.step[place])
    if layout.embedding[row] in (Embedding.FEATURE, Embedding.MASKED_FEATURE):
        scale_of = layout.order.schedule.scale_of_token
        before = layout.order.step[scale_of < scale_of[place]]
        return int(before.max()) if len(before) else 0
    return 0


@either
@every_variant
def test_every_loop_step_has_what_its_places_need(variant: Variant, training: bool) -> None:
    layout = make_layout(variant, 2, training)
    fed: set[int] = set()
    due: list[int] = []
    for loop_step in range(layout.order.num_steps):
        fed |= set(layout.fed(loop_step).tolist())
        places = layout.due(loop_step)
        needed = layout.source[places]
        assert set(needed[needed >= 0].tolist()) <= fed
        due += places.tolist()
    assert fed == set(range(layout.num_rows))
    assert sorted(due) == list(range(variant.schedule.num_tokens))


@every_variant
def test_a_row_is_seen_by_others_or_predicts(variant: Variant) -> None:
    layout = make_layout(variant, 1, training=False)
    predicts = np.isin(np.arange(layout.num_rows), layout.source)
    last = layout.feed.max()
    asks = bool((layout.role == Role.QUERY).any())  # then contexts of the same call are seen
    assert (predicts | (layout.feed < last) | (asks & (layout.role == Role.CONTEXT))).all()


@either
@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        (MethodConfig(name="nar", frame_causal=True), single_grid(3, 2, 4)),
        (MethodConfig(name="nar", frame_causal=True, time_head=True), single_grid(3, 2, 4)),
        (MethodConfig(name="nar", frame_causal=True), single_grid(4, 1, 1)),
        (MethodConfig(name="raster"), single_grid(3, 2, 4)),
        (MethodConfig(name="arpg", num_steps=2, frame_causal=True), single_grid(3, 2, 4)),
        (MethodConfig(name="next_scale", inner="nar", frame_causal=True), TALL),
        (MethodConfig(name="next_scale", inner="random", num_steps=2, frame_causal=True), TALL),
    ],
    ids=str,
)
def test_every_cell_of_a_frame_is_asked_by_a_row_that_sees_all_frames_before(
    method: MethodConfig, schedule: Schedule, training: bool
) -> None:
    layout = METHODS[method.name](schedule, 3, method, training)
    large = schedule.scales[-1]
    cells = layout.order.sequence - schedule.offsets[-2]
    frame = cells // (large.h * large.w)  # of each place; below 0 in smaller scales
    is_token = layout.embedding == Embedding.TOKEN
    for place in np.flatnonzero(frame > 0):
        before = np.flatnonzero(is_token & (frame[layout.index] < frame[place]))
        before = before[frame[layout.index[before]] >= 0]
        assert len(before) == frame[place] * large.h * large.w
        asking = layout.source[place][layout.source[place] >= 0]
        assert any(all(sees(layout, row, other) for other in before) for row in asking)


def test_par_on_a_grid_of_one_group_generates_all_cells_alone() -> None:
    (variant,) = (each for each in VARIANTS if each.name == "par-all")
    layout = make_layout(variant, 0)
    assert layout.order.sizes == (1,) * variant.schedule.num_tokens


def test_a_layout_that_predicts_from_the_future_is_refused() -> None:
    (variant,) = (each for each in VARIANTS if each.name == "raster")
    layout = make_layout(variant, 0)
    with pytest.raises(ValueError, match="after its step"):
        replace(layout, source=np.roll(layout.source, -1, axis=0))
