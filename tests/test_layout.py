"""Layouts and the mask rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.scales import image_and_clip
from training.attention import dense_mask, visible
from training.layout import Embedding, Layout, Role
from training.methods import METHODS

SCHEDULE = image_and_clip(3, (1, 2))


def slow_visible(step_i: int, role_i: int, step_j: int, role_j: int) -> bool:
    if role_i == Role.CONTEXT:
        return role_j == Role.CONTEXT and step_j <= step_i
    if role_j == Role.CONTEXT:
        return step_j < step_i
    return step_j == step_i


def test_the_rule_is_the_definition_for_every_pair_of_steps_and_roles() -> None:
    rows = [(step, role) for step in range(4) for role in (Role.CONTEXT, Role.QUERY)]
    step = torch.tensor([each[0] for each in rows])
    role = torch.tensor([int(each[1]) for each in rows])
    found = visible(step[:, None], role[:, None], step[None], role[None])
    for i, (step_i, role_i) in enumerate(rows):
        for j, (step_j, role_j) in enumerate(rows):
            assert bool(found[i, j]) == slow_visible(step_i, role_i, step_j, role_j)


def test_a_dense_mask_of_the_last_rows_is_the_end_of_the_whole_mask() -> None:
    layout = METHODS["next_scale"](SCHEDULE, 3)
    step, role = torch.from_numpy(layout.step), torch.from_numpy(layout.role)
    whole = dense_mask(step, role, layout.num_rows)
    assert torch.equal(dense_mask(step, role, 4), whole[:, :, -4:])


def test_padded_keys_are_unseen() -> None:
    step, role = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    valid = torch.tensor([[True, False, True]])
    assert dense_mask(step, role, 3, valid)[0, 0].tolist() == [[True, False, True]] * 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_prefix", [0, 3])
def test_a_cell_is_predicted_only_from_what_comes_before_it(method: str, num_prefix: int) -> None:
    layout = METHODS[method](SCHEDULE, num_prefix)
    order = layout.order
    for cell in range(SCHEDULE.num_tokens):
        (row,) = layout.source[cell]
        for other in range(layout.num_rows):
            if not slow_visible(
                layout.step[row], layout.role[row], layout.step[other], layout.role[other]
            ):
                continue
            assert latest_step_behind(layout, other) < order.step[cell]


def latest_step_behind(layout: Layout, row: int) -> int:
    """The step of the latest cell whose code can be in this row's embedding."""
    cell = layout.index[row]
    if layout.embedding[row] == Embedding.TOKEN:
        return int(layout.order.step[cell])
    if layout.embedding[row] == Embedding.FEATURE:
        scale_of = layout.order.schedule.scale_of_token
        return int(layout.order.step[scale_of < scale_of[cell]].max())
    return 0


@pytest.mark.parametrize("method", METHODS)
def test_every_loop_step_feeds_what_its_cells_need(method: str) -> None:
    layout = METHODS[method](SCHEDULE, 2)
    fed: set[int] = set()
    due: list[int] = []
    for loop_step in range(layout.order.num_steps):
        fed |= set(layout.fed(loop_step).tolist())
        cells = layout.due(loop_step)
        assert set(layout.source[cells].ravel().tolist()) <= fed
        due += cells.tolist()
    assert fed == set(range(layout.num_rows))
    assert sorted(due) == list(range(SCHEDULE.num_tokens))


def test_a_layout_that_predicts_from_the_future_is_refused() -> None:
    layout = METHODS["raster"](SCHEDULE, 0)
    with pytest.raises(ValueError, match="after its step"):
        Layout(
            order=layout.order,
            step=layout.step,
            role=layout.role,
            embedding=layout.embedding,
            index=layout.index,
            position=layout.position,
            source=np.roll(layout.source, -1, axis=0),
        )
