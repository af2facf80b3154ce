"""Edits of clips: what is known stays, the rest is sampled; inpainting, outpainting, continuation.

    run = open_run(Path("runs/demo/run"))
    edited = edit(run, open_source(run, "clip.mp4", bucket, config, decode), config)

An edit is sampling with given cells (`training.given`): cells that follow from the known pixels
(`training.known_region`) have the source's codes. So one function is inpainting and outpainting
(a region is made), editing by class or caption (a region is made under another prompt), continuing
a video (its first frames are known) and making one of an image (its first frame is).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.edit_config import EditConfig
from training.edit_source import EditSource, read_mask
from training.given import Given
from training.known_region import known_cells, known_pixels, made_pixels, painted_over
from training.run import OpenedRun
from training.sampler import layout_of
from training.samples import Generated, bucket_of, check_settings, generate


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """Results, with what was known and what was made of the source."""

    results: Generated
    """With the source's pixels where they were kept, unless they were not to be pasted."""
    known: Bool[np.ndarray, "t h w"]
    made: Bool[np.ndarray, "t h w"]
    """The pixels of cells that were made: all that are not known, and more at the border."""
    source: UInt8[np.ndarray, "t h w 3"]
    """Black in frames that the source does not have."""
    num_given: int
    """Cells that were given."""
    num_unseen: int
    """Of these, those that not all that was made has seen: they come later in the order."""


def edit(run: OpenedRun, source: EditSource, config: EditConfig) -> Edited:
    """The results that the settings ask for; UserError before any work where that cannot be."""
    schedule = check_settings(run, config)
    shape = run.record.shapes[bucket_of(run, config)]
    size = (shape.num_frames, shape.height, shape.width)
    stride = run.tokenizer.config.temporal_stride
    mask = None if config.mask is None else read_mask(config.mask, shape, source.size)
    known = known_pixels(config, size, len(source.frames), stride, mask)
    cells = known_cells(schedule, known, stride)
    if not known.any():
        raise UserError(
            "nothing would be kept: `tessera sample` makes whole clips; say what stays with "
            "--hide, --keep, --mask or --first_frames"
        )
    if not cells.any():
        raise UserError(
            "no cell would stay: what is kept must hold all pixels of some cell, which has "
            f"{run.tokenizer.config.spatial_stride} x {run.tokenizer.config.spatial_stride} of "
            f"{stride} frames in the finest scale"
        )
    if cells.all():
        raise UserError("no cell would be made: the region is smaller than a pixel of a cell")
    frames = np.zeros((*size, 3), dtype=np.uint8)
    frames[: len(source.frames)] = source.frames
    device = next(run.generator.parameters()).device
    if source.codes is not None:
        codes = torch.from_numpy(source.codes)[None].to(device)
    else:
        painted = torch.from_numpy(painted_over(frames, known))[None]
        codes = run.tokenizer.encode(painted.to(device))
    chosen = list[str | None](config.prompts) or [_default_prompt(run, source)]
    prompts = [chosen[number % len(chosen)] for number in range(config.num or len(chosen))]
    results = generate(run, prompts, config, Given(codes, cells))
    if config.paste:
        results.frames[:] = np.where(known[..., None], frames, results.frames)
    return Edited(
        results=results,
        known=known,
        made=made_pixels(schedule, cells, size, stride),
        source=frames,
        num_given=int(cells.sum()),
        num_unseen=_num_unseen(run, schedule, config, cells),
    )


def _num_unseen(
    run: OpenedRun, schedule: Schedule, config: EditConfig, cells: Bool[np.ndarray, " l"]
) -> int:
    """Given cells that the order puts behind, or beside, the first of those that are made."""
    given = Given(torch.zeros(1, len(cells), dtype=torch.int64), cells)
    step = layout_of(run.generator, schedule, config, given).order.step_of_cell
    return int((step[cells] >= step[~cells].min()).sum())


def _default_prompt(run: OpenedRun, source: EditSource) -> str | None:
    return None if run.vocabulary.kind == "none" else source.prompt
