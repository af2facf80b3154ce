"""Orders on schedules."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.scales import Schedule, image_and_clip, single_grid
from training.order import INNER_ORDERS, Order, ordered

SCHEDULES = [
    image_and_clip(3, (1, 2, 4)),
    image_and_clip(5, (1, 4), (2, 4), clip_latent_frames=2),
    image_and_clip(1, (1, 2, 3)),
    single_grid(2, 3, 4),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("inner", INNER_ORDERS)
def test_every_cell_is_generated_once_and_scales_follow_one_another(
    schedule: Schedule, inner: str
) -> None:
    order = ordered(schedule, inner)
    cells = np.concatenate([order.cells(step + 1) for step in range(order.num_steps)])
    assert sorted(cells.tolist()) == list(range(schedule.num_tokens))
    last = [steps.max() for steps in schedule.split(order.step)]
    first = [steps.min() for steps in schedule.split(order.step)]
    assert all(before < after for before, after in zip(last, first[1:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_number_of_steps_is_that_of_the_papers(schedule: Schedule) -> None:
    assert ordered(schedule, "all").num_steps == len(schedule.scales)
    assert ordered(schedule, "raster").num_steps == schedule.num_tokens


def test_an_order_with_a_gap_is_refused() -> None:
    schedule = single_grid(1, 1, 3)
    with pytest.raises(ValueError, match="without gaps"):
        Order("broken", schedule, np.array([1, 2, 4]))


def test_the_fingerprint_tells_orders_apart() -> None:
    schedule = single_grid(1, 2, 2)
    prints = {ordered(schedule, inner).fingerprint for inner in INNER_ORDERS}
    assert len(prints) == len(INNER_ORDERS)
    assert ordered(schedule, "all").fingerprint in prints
