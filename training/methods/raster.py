"""Raster: the cells of the flattened schedule one by one, each asked with the code before it.

The start row predicts the first cell and the code of cell i predicts cell i + 1. A row's position
is that of the cell it predicts.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Embedding, Layout, Rows, assemble, prefix_rows
from training.order import ordered


def layout(schedule: Schedule, num_prefix: int) -> Layout:
    """The rows for `schedule` behind `num_prefix` rows of condition."""
    order = ordered(schedule, "raster")
    cells = np.arange(schedule.num_tokens)
    known = cells[:-1]
    blocks = [
        prefix_rows(num_prefix),
        Rows(cells[:1] * 0, Embedding.START, cells[:1], cells[:1]),
        Rows(order.step[known], Embedding.TOKEN, known, known + 1),
    ]
    return assemble(order, blocks, source=num_prefix + cells[:, None])
