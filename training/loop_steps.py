"""The steps of the sampling loop for one layout: everything about them that codes do not change.

Rows, masks, places and where logits are read are the same for every clip, so they become tensors
once per layout and device, and the loop itself does nothing but run the transformer on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from training.fed_rows import FedRows, Sources
from training.given import passes
from training.guidance import Moment
from training.layout import Layout, Role


@dataclass(frozen=True)
class LoopStep:
    """One step: `rows` are fed, `seen` are those in the cache and then these."""

    moment: Moment
    rows: FedRows
    seen: FedRows
    places: Int[Tensor, " n"]
    """The places whose logits are known behind this step."""
    sources: Sources
    """Where their logits are read: among the outputs of `rows` and, behind these, those carried."""
    carried: Int[Tensor, " c"] | None
    """Which of all these outputs some later step reads."""


@lru_cache(maxsize=32)
def loop_steps(
    layout: Layout, device: torch.device, cached: bool = True, given: bytes | None = None
) -> tuple[LoopStep, ...]:
    """Every step; without `cached` each feeds all rows that it sees, not only its own.

    `given` are the bytes of a bool per cell (see `training.given`): what is known from the start.
    """
    cells = None if given is None else np.frombuffer(given, dtype=bool)
    used = np.where(layout.source >= 0, layout.order.step[:, None], 0)
    last_use = np.zeros(layout.num_rows, dtype=np.int64)
    np.maximum.at(last_use, np.maximum(layout.source, 0), used)
    is_context = layout.role == Role.CONTEXT
    kept = waiting = np.empty(0, dtype=np.int64)
    steps = []
    for each in passes(layout, cells):
        number, places, due = each.step, each.places, layout.due(each.step)
        seen = np.concatenate([kept, each.rows])
        rows = each.rows if cached else seen
        outputs = np.concatenate([rows, waiting])
        output_of = np.full(layout.num_rows, -1)
        output_of[outputs] = np.arange(len(outputs))
        source = layout.source[places]
        later = np.flatnonzero((last_use[outputs] > number + 1) & cached)
        waiting = outputs[later]
        fed = FedRows.of(layout, rows, device)
        steps.append(
            LoopStep(
                moment=Moment(
                    number,
                    layout.order.num_steps,
                    int(due[0]),
                    int(due[-1]) + 1,
                    layout.order.schedule.num_tokens,
                ),
                rows=fed,
                seen=fed if len(rows) == len(seen) else FedRows.of(layout, seen, device),
                places=torch.as_tensor(places, device=device),
                sources=Sources.of(np.where(source >= 0, output_of[source], -1), device),
                carried=torch.as_tensor(later, device=device) if len(later) else None,
            )
        )
        kept = seen[is_context[seen]]
    return tuple(steps)


def cache_rows(steps: Sequence[LoopStep]) -> int:
    """How many rows the cache must hold: all contexts, and queries while they are fed."""
    sizes = [
        len(step.seen.step) - (0 if step.seen.queries_meet else step.rows.num_queries)
        for step in steps
    ]
    return max(sizes, default=0)
