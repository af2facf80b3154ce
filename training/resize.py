"""A run for clips of another size than it was trained on: the same weights on another grid.

That needs positions that are defined everywhere, which rotary ones are, and an order that is a rule
and no list: raster, par, nar and arpg over one grid. Next-scale prediction has learned its scales.
"""

from __future__ import annotations

from dataclasses import replace

from tokenizer.settings import UserError
from training.generator import Generator
from training.run import OpenedRun, Shape


def resized(run: OpenedRun, shape: tuple[int, int, int]) -> OpenedRun:
    """The run for clips of (frames, height, width) only.

    UserError when the method or its positions do not allow it, or the tokenizer has no such size.
    """
    own, trained = run.generator, run.generator.schedule
    if own.method.name == "next_scale" or trained.grid is None:
        raise UserError(
            f"shape: {own.method.name} has learned its scales, {', '.join(run.record.shapes)}; "
            "other sizes are for raster, par, nar and arpg on codes of one grid"
        )
    if own.config.block.position != "rope":
        raise UserError(
            "shape: this run has a learned vector for every cell of its grid; other sizes need "
            "rotary positions: train with --model.block.position rope"
        )
    schedule = run.tokenizer.schedule_for(*shape)
    if (schedule.num_latent_frames > 1) != (trained.num_latent_frames > 1):
        kind = "videos, of more than one frame" if shape[0] == 1 else "images, of one frame"
        raise UserError(f"shape ({list(shape)}): this run was trained on {kind}")
    weight = next(own.parameters())
    generator = Generator(
        own.config,
        own.method,
        schedule,
        run.vocabulary,
        own.codebook_size,
        run.record.feature_channels,
    )
    generator.load_state_dict(own.state_dict())
    generator.condition.told = own.condition.told
    frames, height, width = shape
    made = Shape(num_frames=frames, height=height, width=width, schedule=schedule.to_list())
    name = f"t{frames}_h{height}_w{width}"
    return replace(
        run,
        generator=generator.to(weight.device, weight.dtype).eval().requires_grad_(False),
        record=replace(run.record, shapes={name: made}),
    )
