"""ARPG (arXiv 2503.10568): cells in any order, several at once, asked by queries of a second stack.

The first stack reads the condition and the codes so far. A query stands at the cell it asks for,
has no code in it and sees nothing but what the first stack made of earlier steps. Training takes a
cell a step; sampling may take any number, since queries never see one another.
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
    """A query for every place behind the contexts of all but the last step."""
    inner = Inner(
        "random",
        num_steps=None if training else method.num_steps,
        sizes=method.sizes,
        frame_causal=method.frame_causal,
    )
    order = over_grid(schedule, inner, given)
    places = np.arange(schedule.num_tokens)
    known = places[: len(places) - order.sizes[-1]]
    blocks = [
        outside(0, Embedding.PREFIX, num_prefix),
        outside(0, Embedding.START, 1),
        at_places(known, order.step[known], Embedding.TOKEN),
        at_places(places, order.step, Embedding.MASK, Role.QUERY),
    ]
    first_query = num_prefix + 1 + len(known)
    return assemble(order, blocks, first_query + places[:, None], queries_meet=False)
