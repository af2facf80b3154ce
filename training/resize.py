"""A run for clips of another size than it was trained on: the same weights on another grid.

That is for what a generator knows besides its own schedule (see `positions`): any grid with rotary
positions, smaller ones with a table. A run of images has learned nothing about time.
"""

from __future__ import annotations

from dataclasses import replace

from tokenizer.settings import UserError
from training.run import OpenedRun, Shape


def resized(run: OpenedRun, shape: tuple[int, int, int]) -> OpenedRun:
    """The run for clips of (frames, height, width) only, by the same generator.

    UserError when the method or its positions do not allow it, or the tokenizer has no such size.
    """
    schedule = run.tokenizer.schedule_for(*shape)
    generator = run.generator
    if schedule.num_latent_frames > 1 and generator.schedule.num_latent_frames == 1:
        raise UserError(f"shape ({list(shape)}): this run was trained on images, of one frame")
    try:
        generator.layout_for(schedule)
    except UserError as error:
        raise UserError(f"shape ({list(shape)}): {error}") from None
    frames, height, width = shape
    made = Shape(num_frames=frames, height=height, width=width, schedule=schedule.to_list())
    name = f"t{frames}_h{height}_w{width}"
    return replace(run, record=replace(run.record, shapes={name: made}))
