"""Codes drawn from logits: temperature, then top-k, then top-p, then one code per cell.

The draw inverts the cumulative probability at a uniform number that belongs to the sample and the
cell, so that it depends neither on the batch nor on the order of the cells. Filters are those of
LlamaGen and VAR: codes that tie with the k-th all stay and count in the nucleus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.config import SampleConfig
from training.guidance import Moment


class Filters(NamedTuple):
    """What is drawn from: `temperature` 0 takes the likeliest, `top_k` 0 and `top_p` 1 keep all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def filters_at(settings: SampleConfig, moment: Moment) -> Filters:
    """The filters of one step: the settings', or on the way to those of the last step."""

    def between(first: float, last: float | None) -> float:
        return first if last is None else first + (last - first) * moment.share_of_steps

    return Filters(
        between(settings.temperature, settings.last_temperature),
        round(between(settings.top_k, settings.last_top_k)),
        between(settings.top_p, settings.last_top_p),
    )


def draw(
    logits: Float[Tensor, "b n k"], uniform: Float[Tensor, "b n"], filters: Filters
) -> Int[Tensor, "b n"]:
    """A code per cell by inversion: the first whose cumulative probability exceeds `uniform`."""
    if filters.temperature == 0:
        return logits.argmax(dim=-1)
    likelihood = filtered(logits.double(), filters)
    likelihood -= likelihood.amax(dim=-1, keepdim=True)
    cumulative = likelihood.exp_().cumsum(dim=-1)  # up to a factor, which the total has too
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that a code of no probability is never the last.
    threshold = torch.minimum(uniform[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def filtered(logits: Float[Tensor, "*b k"], filters: Filters) -> Float[Tensor, "*b k"]:
    """Logits over the temperature, -inf outside the `top_k` likeliest and their `top_p` nucleus."""
    logits = logits / filters.temperature
    if 0 < filters.top_k < logits.shape[-1]:
        kth = logits.topk(filters.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if filters.top_p < 1:
        ranked, places = logits.sort(dim=-1, descending=True)
        probability = ranked.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        logits = torch.full_like(logits, -torch.inf).scatter(
            -1, places, ranked.masked_fill(before >= filters.top_p, -torch.inf)
        )
    return logits


def uniforms(seed: int, sample_indices: Sequence[int], num_cells: int) -> Float[Tensor, "b l"]:
    """Uniform draws in [0, 1) for every cell, each sample from a key of its own."""
    rows = []
    for index in sample_indices:
        digest = hashlib.sha256(f"sample {seed} {index}".encode()).digest()
        rows.append(np.random.default_rng(list(digest)).random(num_cells))
    return torch.from_numpy(np.stack(rows))
