"""Next-scale prediction (VAR, arXiv 2404.02905): a step for every (pyramid, scale) pair.

A scale is asked with feature rows: the partial reconstruction of all scales before it, resampled
to its grid. Those rows are available as soon as the scale before is, see one another, and each
predicts the cell at its own place. The first scale has nothing before it: the start vector asks.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Embedding, Layout, Rows, assemble, prefix_rows
from training.order import ordered


def layout(schedule: Schedule, num_prefix: int) -> Layout:
    """The rows for `schedule` behind `num_prefix` rows of condition."""
    order = ordered(schedule, "all")
    cells = np.arange(schedule.num_tokens)
    first = cells[: schedule.offsets[1]]
    later = cells[schedule.offsets[1] :]
    blocks = [
        prefix_rows(num_prefix),
        Rows(order.step[first] - 1, Embedding.START, first, first),
        Rows(order.step[later] - 1, Embedding.FEATURE, later, later),
    ]
    return assemble(order, blocks, source=num_prefix + cells[:, None])
