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
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from training.config import GuidanceConfig, SampleConfig
from training.draws import numpy_generator
from training.fed_rows import FedRows
from training.generator import Generator, Known
from training.layout import Layout, Role
from training.order import Order
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
    *,
    cached: bool = True,
    guidance: Callable[[Moment], float] | None = None,
    sequence: Int[Tensor, "#b l"] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Int[Tensor, "b l"]:
    """Codes of one clip per encoded prompt; `sample_indices` number the clips of this seed.

    `quantizer` is needed by methods that feed partial reconstructions. Without `cached` every step
    is a full forward pass: the slow twin that says what is right. `guidance` stands in for the
    settings' schedule, `sequence` for the orders that would be drawn; `watch` is shown every step.
    """
    layout = generator.layout_for(schedule, training=False)
    device = prompts.device
    batch_size = len(prompts)
    guided = guidance is not None or is_guided(settings.guidance)
    scale_at = guidance or partial(guidance_scale, settings.guidance)
    both = torch.cat([prompts, torch.full_like(prompts, ABSENT)]) if guided else prompts
    condition = generator.condition(both)
    uniform = _uniforms(settings.seed, sample_indices, schedule.num_tokens).to(device)
    if sequence is None:
        sequence = _sequences(layout.order, settings.seed, sample_indices).to(device)
    needed = quantizer if generator.num_features else None
    clip = PartialClip(schedule, batch_size, device, needed, generator.num_features)
    cache = generator.transformer.new_cache(len(both), layout.num_rows) if cached else None
    outputs = Outputs(layout)
    kept = np.empty(0, dtype=np.int64)
    done = 0
    for loop_step in range(layout.order.num_steps):
        fed = layout.fed(loop_step)
        seen = np.concatenate([kept, fed])
        rows = fed if cached else seen
        known = Known(sequence, clip.codes, clip.features)
        hidden = generator.hidden(
            FedRows.of(layout, rows, device),
            FedRows.of(layout, seen, device),
            condition,
            known.doubled() if guided else known,
            cache,
        )
        places = layout.due(loop_step)
        logits = generator.logits(*outputs.of(places, hidden, rows, loop_step))
        scale = 1.0
        if guided:
            moment = Moment(
                loop_step, layout.order.num_steps, done, done + len(places), schedule.num_tokens
            )
            scale = scale_at(moment)
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + scale * (conditional - unconditional)
        cells = sequence[:, torch.as_tensor(places, device=device)]
        clip.write(cells, draw(logits, uniform.gather(1, cells.expand(batch_size, -1)), settings))
        if watch is not None:
            watch(Step(loop_step, cells, logits, scale, clip))
        kept = np.concatenate([kept, fed[layout.role[fed] == Role.CONTEXT]])
        done += len(places)
    return clip.codes


@dataclass(frozen=True)
class Step:
    """One step of sampling, for those who watch: `logits` are guided, by `scale`, not filtered."""

    number: int
    cells: Int[Tensor, "#b n"]
    logits: Float[Tensor, "b n k"]
    scale: float
    clip: PartialClip


class Outputs:
    """The rows that places are read from, kept for those that need them some steps later."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        used = np.where(layout.source >= 0, layout.order.step[:, None], 0)
        self._last_use = np.zeros(layout.num_rows, dtype=np.int64)
        np.maximum.at(self._last_use, np.maximum(layout.source, 0), used)
        self._rows = np.empty(0, dtype=np.int64)
        self._hidden: list[Tensor] | None = None

    def of(
        self, places: np.ndarray, hidden: list[Tensor], rows: np.ndarray, loop_step: int
    ) -> tuple[list[Tensor], np.ndarray]:
        """Rows of `hidden` and those kept, and where among them the sources of places are."""
        if self._hidden is not None and len(self._rows):
            fresh = ~np.isin(self._rows, rows)
            chosen = torch.as_tensor(np.flatnonzero(fresh), device=hidden[0].device)
            hidden = [torch.cat([new, old[:, chosen]], 1) for new, old in zip(hidden, self._hidden)]
            rows = np.concatenate([rows, self._rows[fresh]])
        place_of = np.full(self._layout.num_rows, -1)
        place_of[rows] = np.arange(len(rows))
        source = self._layout.source[places]
        later = self._last_use[rows] > loop_step + 1
        self._rows = rows[later]
        if later.any():
            index = torch.as_tensor(np.flatnonzero(later), device=hidden[0].device)
            self._hidden = [each[:, index] for each in hidden]
        return hidden, np.where(source >= 0, place_of[source], -1)


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


def _sequences(order: Order, seed: int, sample_indices: Sequence[int]) -> Int[Tensor, "#b l"]:
    """The cell at each place: the same for all, or drawn by a key of each sample's own."""
    if not order.shuffled:
        return torch.from_numpy(order.sequence)[None]
    drawn = [order.drawn(numpy_generator(seed, "order", index)) for index in sample_indices]
    return torch.from_numpy(np.stack(drawn))
