"""Frames of clips while the rest of them is still being generated.

    clip, steps = sampling(generator, prompts, schedule, settings, range(4), quantizer)
    for frames in stream_frames(tokenizer, clip, steps):
        show(frames)                                    # uint8 [4, t, h, w, 3]
    clip.codes                                          # of the whole clips

A latent frame is decoded as soon as its codes are there: in orders that go frame after frame
(`frame_causal`, raster) that is long before the end; next scale gives a pyramid at a time; other
orders give everything at once. Together the frames are those of the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

from tokenizer.model import Tokenizer
from tokenizer.scales import Scale, Schedule
from tokenizer.streaming import CodedPyramid, stream_decode
from training.given import Given
from training.order import Order
from training.partial import PartialClip
from training.sampler import Step


def stream_frames(
    tokenizer: Tokenizer, clip: PartialClip, steps: Iterator[Step], given: Given | None = None
) -> Iterator[UInt8[Tensor, "b t h w 3"]]:
    """The frames of clips that `sampling` has begun: the first alone, then a stride at a time."""

    def finished() -> Iterator[CodedPyramid]:
        known = torch.zeros_like(clip.codes, dtype=torch.bool)
        if given is not None:
            known |= torch.from_numpy(given.cells).to(known.device)
        start = 0
        for scales in _pieces(clip.schedule):
            stop = start + sum(scale.num_tokens for scale in scales)
            while not known[:, start:stop].all():
                step = next(steps)
                known.scatter_(1, step.cells.expand(len(known), -1), value=True)
            yield CodedPyramid(clip.codes[:, start:stop], scales)
            start = stop

    return stream_decode(tokenizer, finished())


def first_at(order: Order) -> int:
    """The step behind which the first frame is there, however random cells are drawn."""
    latest = order.step_of_cell
    for start, stop in order.shuffled:
        latest[order.sequence[start:stop]] = order.step[stop - 1]
    first = next(_pieces(order.schedule))
    return int(latest[: sum(scale.num_tokens for scale in first)].max())


def _pieces(schedule: Schedule) -> Iterator[tuple[Scale, ...]]:
    """What can be decoded by itself: each latent frame of a grid, else each pyramid."""
    if schedule.grid is None:
        yield from schedule.pyramids
        return
    num_frames, height, width = schedule.grid
    for frame in range(num_frames):
        yield (Scale(frame, frame + 1, 1, height, width),)
