"""Layouts and the mask rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.generators import VARIANTS, Variant
from training.layout import Embedding, Layout, Role
from training.methods import METHODS

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


@either
@every_variant
def test_a_place_is_predicted_only_from_what_comes_before_it(
    variant: Variant, training: bool
) -> None:
    layout = make_layout(variant, 3, training)
    for place, sources in enumerate(layout.source):
        for row in sources[sources >= 0]:
            for other in range(layout.num_rows):
                if slow_visible(
                    layout.step[row],
                    layout.role[row],
                    layout.step[other],
                    layout.role[other],
                    layout.queries_meet,
                ):
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


def test_par_on_a_grid_of_one_group_generates_all_cells_alone() -> None:
    (variant,) = (each for each in VARIANTS if each.name == "par-all")
    layout = make_layout(variant, 0)
    assert layout.order.sizes == (1,) * variant.schedule.num_tokens


def test_a_layout_that_predicts_from_the_future_is_refused() -> None:
    (variant,) = (each for each in VARIANTS if each.name == "raster")
    layout = make_layout(variant, 0)
    with pytest.raises(ValueError, match="after its step"):
        replace(layout, source=np.roll(layout.source, -1, axis=0))
