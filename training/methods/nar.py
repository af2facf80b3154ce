"""NAR (arXiv 2503.10696): cells at the same Manhattan distance from the first one share a step.

Each axis has a head. The head of axis w at cell (t, h, w - 1) predicts (t, h, w), those of h and t
do the same along theirs; a cell's logits are the mean over the heads that reach it. The first cell
is asked by the start, through all heads.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Embedding, Layout, assemble, at_places, outside
from training.method_config import MethodConfig
from training.order import Inner, over_grid


def layout(
    schedule: Schedule,
    num_prefix: int,
    method: MethodConfig,
    training: bool,
    given: np.ndarray | None = None,
) -> Layout:
    """Heads along w, h and t; images have none along t unless `time_head` says so."""
    order = over_grid(schedule, Inner("nar", frame_causal=method.frame_causal))
    shape = schedule.grid
    assert shape is not None
    places = np.arange(schedule.num_tokens)
    place_of_cell = np.argsort(order.sequence)
    at = np.stack(np.unravel_index(order.sequence, shape))
    start = num_prefix
    heads = []
    for axis in (2, 1, 0)[: 3 if shape[0] > 1 or method.time_head else 2]:
        before = at.copy()
        before[axis] -= 1
        exists = before[axis] >= 0
        neighbour = place_of_cell[np.ravel_multi_index(before.clip(min=0), shape)]
        heads.append(np.where(exists, start + 1 + neighbour, -1))
    source = np.stack(heads, axis=1)
    source[0] = start
    known = places[:-1]
    blocks = [
        outside(0, Embedding.PREFIX, num_prefix),
        outside(0, Embedding.START, 1),
        at_places(known, order.step[known], Embedding.TOKEN),
    ]
    return assemble(order, blocks, source)
