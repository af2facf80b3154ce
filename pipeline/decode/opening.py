"""The frames of a video from a time on, in the size and rate that someone needs, for one clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.clip import central_crop
from pipeline.decode import open_decoder
from pipeline.decode.decoder import DecodeSettings
from pipeline.decode.errors import DecodeError
from tokenizer.settings import UserError


def opening_frames(
    path: Path, num_frames: int, height: int, width: int, fps: float, start_seconds: float
) -> np.ndarray:
    """uint8 (n, height, width, 3): at most `num_frames` at `fps`, as a build would cut them.

    Fewer where the video ends before; UserError where it begins after its end or cannot be read.
    """
    decoder = open_decoder("pyav", settings=DecodeSettings(damage="prefix"))
    try:
        probe = decoder.probe(path)
        stream = decoder.stream(
            path,
            fps=fps,
            height=height,
            width=width,
            crop=central_crop(probe.width, probe.height, width / height),
            start_seconds=start_seconds,
            chunk_frames=num_frames,
        )
        for frames in stream:
            return frames.pixels
    except DecodeError as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None
    raise UserError(f"{path}: start_seconds ({start_seconds:g}) is behind its end")
