"""Attention, and the one rule that gives every mask.

    context i sees context j   iff a_j <= a_i     (both ways inside a step, causal between steps)
    query   i sees context j   iff a_j <  a_i     (a_i: the step being predicted)
    query   i sees query   j   iff a_j == a_i and queries meet
    context never sees a query

`visible` is that rule on index vectors that broadcast. It fills the dense mask used here, and is
what a FlexAttention mask function needs, so both can only agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.layout import Role


def visible(
    query_step: Tensor, query_role: Tensor, key_step: Tensor, key_role: Tensor, queries_meet: bool
) -> Bool[Tensor, "..."]:
    """Whether a row with (query_step, query_role) sees one with (key_step, key_role)."""
    asks = query_role == Role.QUERY
    is_query = key_role == Role.QUERY
    context = ~is_query & torch.where(asks, key_step < query_step, key_step <= query_step)
    if not queries_meet:
        return context
    return context | (asks & is_query & (key_step == query_step))


def dense_mask(
    step: Int[Tensor, " k"],
    role: Int[Tensor, " k"],
    num_queries: int,
    valid: Bool[Tensor, "b k"] | None = None,
    queries_meet: bool = True,
) -> Bool[Tensor, "#b 1 q k"]:
    """The rule for the last `num_queries` of k rows against all of them; padded keys are unseen."""
    rows = slice(len(step) - num_queries, None)
    mask = visible(step[rows, None], role[rows, None], step[None, :], role[None, :], queries_meet)
    mask = mask[None, None]
    return mask if valid is None else mask & valid[:, None, None, :]


def attend(
    query: Float[Tensor, "b n q e"],
    key: Float[Tensor, "b n k e"],
    value: Float[Tensor, "b n k e"],
    mask: Bool[Tensor, "#b 1 q k"] | None,
    scale: float,
) -> Float[Tensor, "b n q e"]:
    """Scaled dot-product attention under `mask`; without one, everything is seen."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
