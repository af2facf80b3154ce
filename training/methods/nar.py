"""NAR (arXiv 2503.10696): cells at the same Manhattan distance from the first one share a step.

Each axis has a head. The head of axis w at cell (t, h, w - 1) predicts (t, h, w), those of h and t
do the same along theirs; a cell's logits are the mean over the heads that reach it. The first cell
is asked by the start, through all heads.

Frame after frame there is no head of t: what it reads was made when the frame before had just begun
and would know next to nothing of it. Instead the first cell of each further frame is asked, through
all heads, by a query that sees the finished frames; all later cells of the frame have neighbours.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Embedding, Layout, Role, assemble, at_places, outside
from training.method_config import MethodConfig
from training.order import Inner, over_grid


def layout(
    schedule: Schedule,
    num_prefix: int,
    method: MethodConfig,
    training: bool,
    given: np.ndarray | None = None,
) -> Layout:
    """Heads along w and h, and along t unless frames are by themselves and `time_head` is off."""
    order = over_grid(schedule, Inner("nar", frame_causal=method.frame_causal))
    shape = schedule.grid
    assert shape is not None
    by_frame = method.frame_causal or shape[0] == 1
    places = np.arange(schedule.num_tokens)
    place_of_cell = np.argsort(order.sequence)
    at = np.stack(np.unravel_index(order.sequence, shape))
    start = num_prefix
    heads = []
    for axis in (2, 1, 0)[: 2 if by_frame and not method.time_head else 3]:
        before = at.copy()
        before[axis] -= 1
        exists = before[axis] >= 0
        neighbour = place_of_cell[np.ravel_multi_index(before.clip(min=0), shape)]
        heads.append(np.where(exists, start + 1 + neighbour, -1))
    source = np.stack(heads, axis=1)
    source[0] = start
    known = places[:-1]
    frame_size = len(places) // shape[0]
    asked = places[frame_size::frame_size] if by_frame else places[:0]
    source[asked] = start + 1 + len(known) + np.arange(len(asked))[:, None]
    blocks = [
        outside(0, Embedding.PREFIX, num_prefix),
        outside(0, Embedding.START, 1),
        at_places(known, order.step[known], Embedding.TOKEN),
        at_places(asked, order.step[asked], Embedding.MASK, Role.QUERY),
    ]
    return assemble(order, blocks, source)
