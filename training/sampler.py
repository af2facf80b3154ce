"""The one sampling loop: a forward pass per step of the order, for every method and condition.

    codes = sampling(generator, prompts, schedule, SampleConfig(), range(4), quantizer).codes()

    step g:  build the inputs of the rows that are fed in g from what is known
             run them with the cache; gather logits to the cells of step g + 1
             guide, filter, draw, write the codes down

Every draw is keyed by (seed, sample index), so a sample does not depend on the others of its batch:
it is exactly the same in any batch of as many, and in others up to rounding, which now and then
turns a draw between two codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from training.compiled import begin_step, run_and_cache
from training.config import SampleConfig
from training.drawing import draw, filters_at, uniforms
from training.draws import numpy_generator
from training.generator import Generator, Known
from training.given import Given
from training.guidance import Moment, guidance_scale, is_guided
from training.layout import Layout
from training.loop_steps import LoopStep, cache_rows, loop_steps
from training.order import Order
from training.partial import PartialClip
from training.vocabulary import ABSENT


def sampling(
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
) -> Sampling:
    """One clip per encoded prompt; `sample_indices` number the clips of this seed.

    `quantizer` is needed by methods that feed partial reconstructions. Without `cached` every step
    is a full forward pass: the slow twin that says what is right. `guidance` stands in for the
    settings' schedule, `sequence` for the orders that would be drawn. Cells that are `given` come
    back as they are. ValueError when the generator is in training mode, whose dropout would be in
    every step.
    """
    if generator.training:
        raise ValueError("the generator is in training mode: call generator.eval() before sampling")
    layout = layout_of(generator, schedule, settings, given)
    device = prompts.device
    if guidance is None and is_guided(settings.guidance):
        guidance = partial(guidance_scale, settings.guidance)
    if sequence is None:
        sequence = _sequences(layout.order, settings.seed, sample_indices).to(device)
    needed = quantizer if generator.num_features else None
    clip = PartialClip(schedule, len(prompts), device, needed, generator.num_features)
    if given is not None:
        write_given(clip, given, sequence, layout.order)
    cells = None if given is None else given.cells.tobytes()
    steps = loop_steps(layout, device, cached, cells)
    uniform = uniforms(settings.seed, sample_indices, schedule.num_tokens).to(device)
    loop = _loop(clip, generator, prompts, steps, settings, guidance, sequence, uniform, cached)
    return Sampling(clip, loop)


class Sampling(NamedTuple):
    """Clips, of which nothing but what is given is known at first, and the loop that fills them."""

    clip: PartialClip
    steps: Iterator[Step]
    """Each is taken when it is asked for."""

    def codes(self, watch: Callable[[Step], None] | None = None) -> Int[Tensor, "b l"]:
        """The codes behind the last step; `watch` is shown every step that is left."""
        for step in self.steps:
            if watch is not None:
                watch(step)
        return self.clip.codes


@torch.no_grad()
def _loop(
    clip: PartialClip,
    generator: Generator,
    prompts: Int[Tensor, "b n"],
    steps: Sequence[LoopStep],
    settings: SampleConfig,
    guidance: Callable[[Moment], float] | None,
    sequence: Int[Tensor, "#b l"],
    uniform: Float[Tensor, "b l"],
    cached: bool,
) -> Iterator[Step]:
    guided = guidance is not None
    if guided:
        prompts = torch.cat([prompts, torch.full_like(prompts, ABSENT)])
    condition = generator.condition(prompts)
    with run_and_cache(
        generator.transformer, len(prompts), cache_rows(steps), cached, settings.compile
    ) as (run, cache):
        carried: list[Tensor] = []
        for step in steps:
            begin_step(settings.compile)
            known = Known(sequence, clip.codes, clip.features)
            known = known.doubled() if guided else known
            hidden = generator.hidden(step.rows, step.seen, condition, known, cache, run)
            if carried:
                hidden = [torch.cat([new, old], dim=1) for new, old in zip(hidden, carried)]
            logits = generator.logits(hidden, step.sources)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            carried = [] if step.carried is None else [each[:, step.carried] for each in hidden]
            scale = 1.0
            if guidance is not None:
                scale = guidance(step.moment)
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + scale * (conditional - unconditional)
            cells = sequence[:, step.places]
            at_cells = uniform.gather(1, cells.expand(len(uniform), -1))
            clip.write(cells, draw(logits, at_cells, filters_at(settings, step.moment)))
            yield Step(step.moment.step, cells, logits, scale, clip)


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
