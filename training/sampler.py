"""The one sampling loop: a forward pass per step of the order, for every method and condition.

    step g:  build the inputs of the rows that are fed in g from what is known
             run them with the cache; gather logits to the cells of step g + 1
             guide, filter, draw, write the codes down

Every draw is keyed by (seed, sample index), so a sample does not depend on the batch it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from training.config import GuidanceConfig, SampleConfig
from training.generator import FedRows, Generator
from training.partial import PartialClip
from training.vocabulary import ABSENT


@torch.no_grad()
def sample_codes(
    generator: Generator,
    prompts: Int[Tensor, "b n"],
    schedule: Schedule,
    settings: SampleConfig,
    sample_indices: Sequence[int],
    quantizer: MultiScaleQuantizer | None = None,
    cached: bool = True,
) -> Int[Tensor, "b l"]:
    """Codes of one clip per encoded prompt; `sample_indices` number the clips of this seed.

    `quantizer` is needed by methods that feed partial reconstructions. Without `cached` every step
    is a full forward pass: the slow twin that says what is right.
    """
    layout = generator.layout_for(schedule)
    device = prompts.device
    batch_size = len(prompts)
    guided = is_guided(settings.guidance)
    both = torch.cat([prompts, torch.full_like(prompts, ABSENT)]) if guided else prompts
    condition = generator.condition(both)
    uniform = _uniforms(settings.seed, sample_indices, schedule.num_tokens).to(device)
    clip = PartialClip(schedule, batch_size, device, quantizer if generator.uses_features else None)
    cache = generator.transformer.new_cache(len(both), layout.num_rows) if cached else None
    kept = np.empty(0, dtype=np.int64)
    done = 0
    for loop_step in range(layout.order.num_steps):
        fed = layout.fed(loop_step)
        seen = np.concatenate([kept, fed])
        rows = fed if cached else seen
        hidden = generator.hidden(
            FedRows.of(layout, rows, device),
            FedRows.of(layout, seen, device),
            condition,
            _repeated(clip.codes, guided),
            _repeated(clip.features, guided) if clip.features is not None else None,
            cache,
        )
        cells = layout.due(loop_step)
        logits = generator.logits(hidden, _places(layout.source[cells], rows))
        if guided:
            moment = Moment(
                loop_step, layout.order.num_steps, done, done + len(cells), schedule.num_tokens
            )
            scale = guidance_scale(settings.guidance, moment)
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + scale * (conditional - unconditional)
        clip.write(cells, draw(logits, uniform[:, cells], settings))
        kept = np.concatenate([kept, fed[layout.role[fed] == 0]])
        done += len(cells)
    return clip.codes


@dataclass(frozen=True)
class Moment:
    """Where sampling stands: the loop step, and the cells done before and after it."""

    step: int
    num_steps: int
    cells_before: int
    cells_after: int
    num_cells: int


def is_guided(guidance: GuidanceConfig) -> bool:
    """Whether the schedule ever leaves scale 1, which is the conditional model itself."""
    return guidance.scale != 1


def guidance_scale(guidance: GuidanceConfig, moment: Moment) -> float:
    """The scale s of `unconditional + s * (conditional - unconditional)` in this step."""
    return _GUIDANCE[guidance.kind](guidance, moment)


def _constant(guidance: GuidanceConfig, moment: Moment) -> float:
    return guidance.scale


def _linear(guidance: GuidanceConfig, moment: Moment) -> float:
    return 1 + (guidance.scale - 1) * moment.cells_after / moment.num_cells


def _ramp(guidance: GuidanceConfig, moment: Moment) -> float:
    return 1 + (guidance.scale - 1) * moment.step / max(moment.num_steps - 1, 1)


def _interval(guidance: GuidanceConfig, moment: Moment) -> float:
    share = moment.cells_before / moment.num_cells
    return guidance.scale if guidance.start <= share < guidance.end else 1.0


_GUIDANCE: dict[str, Callable[[GuidanceConfig, Moment], float]] = {
    "constant": _constant,
    "linear": _linear,
    "ramp": _ramp,
    "interval": _interval,
}


def draw(
    logits: Float[Tensor, "b n k"], uniform: Float[Tensor, "b n"], settings: SampleConfig
) -> Int[Tensor, "b n"]:
    """A code per cell by inversion: the first whose cumulative probability exceeds `uniform`."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    logits = filtered(logits.double() / settings.temperature, settings.top_k, settings.top_p)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that a code of no probability is never the last.
    threshold = torch.minimum(uniform[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return (cumulative <= threshold).sum(dim=-1)


def filtered(logits: Float[Tensor, "b n k"], top_k: int, top_p: float) -> Float[Tensor, "b n k"]:
    """Logits with -inf outside the `top_k` likeliest (0: all) and the `top_p` nucleus of those."""
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ranked, places = logits.sort(dim=-1, descending=True)
        probability = ranked.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        logits = torch.full_like(logits, -torch.inf).scatter(
            -1, places, ranked.masked_fill(before >= top_p, -torch.inf)
        )
    return logits


def _uniforms(seed: int, sample_indices: Sequence[int], num_cells: int) -> Float[Tensor, "b l"]:
    """Uniform draws in [0, 1) for every cell, each sample from a key of its own."""
    rows = []
    for index in sample_indices:
        digest = hashlib.sha256(f"sample {seed} {index}".encode()).digest()
        rows.append(np.random.default_rng(list(digest)).random(num_cells))
    return torch.from_numpy(np.stack(rows))


def _repeated(values: Tensor, guided: bool) -> Tensor:
    return torch.cat([values, values]) if guided else values


def _places(source: Int[np.ndarray, "cells heads"], rows: Int[np.ndarray, " r"]) -> np.ndarray:
    """`source` as places in `rows` instead of rows of the layout."""
    place_of = np.full(max(rows.max(), source.max()) + 1, -1)
    place_of[rows] = np.arange(len(rows))
    return np.where(source >= 0, place_of[source], -1)
