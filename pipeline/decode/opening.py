"""The frames of a video from a time on, in the size and rate that someone needs, for one clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.clip import central_crop
from pipeline.decode import ClipRequest, DecodeError, DecodeLimits, open_decoder
from tokenizer.settings import UserError


def opening_frames(
    path: Path, num_frames: int, height: int, width: int, fps: float, start_seconds: float
) -> np.ndarray:
    """uint8 (n, height, width, 3): at most `num_frames` at `fps`, as a build would cut them.

    Fewer where the video ends before; UserError where it begins after its end or cannot be read.
    """
    decoder = open_decoder("pyav", DecodeLimits())
    try:
        probe = decoder.probe(path)
        second = 1 / Fraction(*probe.time_base)
        first = last = None
        for pts, _, _ in decoder.scan(path):
            first = pts if first is None else first
            last = pts
            start = first + round(Fraction(start_seconds) * second)
            if pts >= start + num_frames * second / Fraction(fps):
                break
        if first is None or last is None or last < start:
            length = (
                "nothing"
                if first is None or last is None
                else f"{float((last - first) / second):.2f} s"
            )
            raise UserError(
                f"{path}: start_seconds ({start_seconds:g}) is behind its end: {length}"
            )
        there = int((last - start) / second * Fraction(fps)) + 1
        request = ClipRequest(
            start_pts=start,
            end_pts=last + 1,
            fps=fps,
            num_frames=min(num_frames, there),
            crop=central_crop(probe.width, probe.height, width / height),
            height=height,
            width=width,
        )
        return next(iter(decoder.clips(path, [request])))
    except DecodeError as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None
