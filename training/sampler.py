"""The one sampling loop: a forward pass per step of the order, for every method and condition.

    step g:  build the inputs of the rows that are fed in g from what is known
             run them with the cache; gather logits to the cells of step g + 1
             guide, filter, draw, write the codes down

Every draw is keyed by (seed, sample index), so a sample does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from training.config import SampleConfig
from training.drawing import draw, filters_at, uniforms
from training.draws import numpy_generator
from training.generator import Generator, Known
from training.given import Given
from training.guidance import Moment, guidance_scale, is_guided
from training.layout import Layout
from training.loop_steps import cache_rows, loop_steps
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
    given: Given | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Int[Tensor, "b l"]:
    """Codes of one clip per encoded prompt; `sample_indices` number the clips of this seed.

    `quantizer` is needed by methods that feed partial reconstructions. Without `cached` every step
    is a full forward pass: the slow twin that says what is right. `guidance` stands in for the
    settings' schedule, `sequence` for the orders that would be drawn. Cells that are `given` come
    back as they are; `watch` is shown every step.
    """
    layout = layout_of(generator, schedule, settings, given)
    device = prompts.device
    batch_size = len(prompts)
    guided = guidance is not None or is_guided(settings.guidance)
    scale_at = guidance or partial(guidance_scale, settings.guidance)
    both = torch.cat([prompts, torch.full_like(prompts, ABSENT)]) if guided else prompts
    condition = generator.condition(both)
    uniform = uniforms(settings.seed, sample_indices, schedule.num_tokens).to(device)
    if sequence is None:
        sequence = _sequences(layout.order, settings.seed, sample_indices).to(device)
    needed = quantizer if generator.num_features else None
    clip = PartialClip(schedule, batch_size, device, needed, generator.num_features)
    if given is not None:
        write_given(clip, given, sequence, layout.order)
    known_cells = None if given is None else given.cells.tobytes()
    steps = loop_steps(layout, device, cached, known_cells)
    cache = generator.transformer.new_cache(len(both), cache_rows(steps)) if cached else None
    carried: list[Tensor] = []
    for step in steps:
        known = Known(sequence, clip.codes, clip.features)
        hidden = generator.hidden(
            step.rows, step.seen, condition, known.doubled() if guided else known, cache
        )
        if carried:
            hidden = [torch.cat([new, old], dim=1) for new, old in zip(hidden, carried)]
        logits = generator.logits(hidden, step.sources)
        carried = [] if step.carried is None else [each[:, step.carried] for each in hidden]
        moment = Moment(
            step.number,
            layout.order.num_steps,
            step.cells_before,
            step.cells_after,
            schedule.num_tokens,
        )
        scale = scale_at(moment) if guided else 1.0
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + scale * (conditional - unconditional)
        cells = sequence[:, step.places]
        at_cells = uniform.gather(1, cells.expand(batch_size, -1))
        clip.write(cells, draw(logits, at_cells, filters_at(settings, moment)))
        if watch is not None:
            watch(Step(step.number, cells, logits, scale, clip))
    return clip.codes


def layout_of(
    generator: Generator, schedule: Schedule, settings: SampleConfig, given: Given | None = None
) -> Layout:
    """The layout that the loop runs; UserError for steps that this generator cannot take."""
    method = generator.method.in_steps(settings.num_steps, settings.sizes)
    cells = None if given is None else given.cells
    return generator.layout_for(schedule, training=False, method=method, given=cells)


def write_given(
    clip: PartialClip, given: Given, sequence: Int[Tensor, "#b l"], order: Order
) -> None:
    """Puts given codes into a new clip; ValueError when they are not at the order's places."""
    at_places = given.cells[sequence.cpu().numpy()]
    if (at_places != given.cells[order.sequence]).any():
        raise ValueError("sequence: given cells must have the places that their order gives them")
    cells = torch.from_numpy(np.flatnonzero(given.cells)).to(sequence.device)
    clip.write(cells[None], given.codes[:, cells].expand(len(clip.codes), -1))


@dataclass(frozen=True)
class Step:
    """One step of sampling, for those who watch: `logits` are guided, by `scale`, not filtered."""

    number: int
    cells: Int[Tensor, "#b n"]
    logits: Float[Tensor, "b n k"]
    scale: float
    clip: PartialClip


def _sequences(order: Order, seed: int, sample_indices: Sequence[int]) -> Int[Tensor, "#b l"]:
    """The cell at each place: the same for all, or drawn by a key of each sample's own."""
    if not order.shuffled:
        return torch.from_numpy(order.sequence)[None]
    drawn = [order.drawn(numpy_generator(seed, "order", index)) for index in sample_indices]
    return torch.from_numpy(np.stack(drawn))
