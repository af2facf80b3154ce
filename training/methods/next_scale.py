"""Next-scale prediction (VAR, arXiv 2404.02905): a step for every (pyramid, scale) pair.

A scale is asked with feature rows: the partial reconstruction of all scales before it, resampled
to its grid. Those rows are available as soon as the scale before is, see one another, and each
predicts the cell at its own place. The first scale has nothing before it: the start vector asks.

Scales of at least `method.inner_cells` cells may take several steps, in the order `method.inner`:
the feature rows predict the cells of the first; their codes become rows as well; and queries, a
mask over the partial reconstruction, ask for the cells of the later ones.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Scale, Schedule
from training.layout import Embedding, Layout, Role, assemble, at_places, outside
from training.method_config import MethodConfig
from training.order import Inner, over_scales


def layout(
    schedule: Schedule,
    num_prefix: int,
    method: MethodConfig,
    training: bool,
    given: np.ndarray | None = None,
) -> Layout:
    """The rows for `schedule` behind `num_prefix` rows of condition."""
    order = over_scales(schedule, lambda scale: _inner(scale, method), given)
    places = np.arange(schedule.num_tokens)
    offsets = np.array(schedule.offsets)
    of_scale = schedule.scale_of_token
    first_step = order.step[offsets[:-1]][of_scale]
    last_step = order.step[offsets[1:] - 1][of_scale]
    asked = first_step - 1
    known = places[order.step < last_step]
    queried = places[order.step > first_step]
    first, later = places[: offsets[1]], places[offsets[1] :]
    blocks = [
        outside(0, Embedding.PREFIX, num_prefix),
        at_places(first, asked[first], Embedding.START),
        at_places(later, asked[later], Embedding.FEATURE),
        at_places(known, order.step[known], Embedding.TOKEN),
        at_places(queried, order.step[queried], Embedding.MASKED_FEATURE, Role.QUERY),
    ]
    source = num_prefix + places
    source[queried] = num_prefix + len(places) + len(known) + np.arange(len(queried))
    return assemble(order, blocks, source[:, None])


def _inner(scale: Scale, method: MethodConfig) -> Inner:
    if method.inner == "all" or scale.num_tokens < method.inner_cells:
        return Inner("all")
    return Inner(
        method.inner,
        regions=method.regions,
        num_steps=method.num_steps,
        sizes=method.sizes,
        frame_causal=method.frame_causal,
    )
