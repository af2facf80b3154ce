"""Raster and PAR (arXiv 2412.15119): each place is asked with the code one group of places before.

PAR's groups are the same cell of all n regions; the first n cells come one by one, once per clip.
Then n - 1 learned transition vectors stand in beside the last of them for the codes that the first
group has not before it:

    step 0        start                            predicts place 0
    step k < n    code of place k - 1              predicts place k
    step n        code of place n - 1, M_1..M_n-1  predict places n..2n - 1
    later steps   codes of a group                 predict the next group, region by region

Raster is PAR with one region.
"""

from __future__ import annotations

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Embedding, Layout, assemble, at_places, outside
from training.method_config import MethodConfig
from training.order import Inner, Order, over_grid, over_scales


def raster(
    schedule: Schedule,
    num_prefix: int,
    method: MethodConfig,
    training: bool,
    given: np.ndarray | None = None,
) -> Layout:
    """Cell by cell; in a pyramid scale after scale."""
    return _shifted(over_scales(schedule, lambda scale: Inner("raster")), num_prefix, 1)


def par(
    schedule: Schedule,
    num_prefix: int,
    method: MethodConfig,
    training: bool,
    given: np.ndarray | None = None,
) -> Layout:
    """Region by region, side by side."""
    inner = Inner("par", regions=method.regions, starts_alone=True)
    return _shifted(over_grid(schedule, inner), num_prefix, int(np.prod(method.regions)))


def _shifted(order: Order, num_prefix: int, group: int) -> Layout:
    """The rows whose codes are `group` places behind what they predict."""
    places = np.arange(order.schedule.num_tokens)
    alone, rest = places[:group], places[group : max(group, len(places) - group)]
    num_transitions = group - 1 if len(places) > group else 0
    if len(places) == group:
        alone = alone[:-1]
    blocks = [
        outside(0, Embedding.PREFIX, num_prefix),
        outside(0, Embedding.START, 1),
        at_places(alone, order.step[alone], Embedding.TOKEN),
        outside(group, Embedding.TRANSITION, num_transitions),
        at_places(rest, order.step[rest], Embedding.TOKEN),
    ]
    # The rows, start and transitions included, predict the places in order.
    return assemble(order, blocks, source=num_prefix + places[:, None])
