"""Resizing: one area filter, swscale's, for the frames of every decoder and for images.

Down it averages, up it interpolates linearly. Chroma is computed for every pixel of the result and
rounded accurately, at 1.4 times the cost of swscale's default, which gives small pictures half of
their horizontal colour resolution. At native size pixels are those of PyAV's `to_ndarray`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.decode.decoder import DecodeError

Crop: TypeAlias = tuple[int, int, int, int]
"""(x, y, width, height) in pixels."""


_ROUGH = int(Interpolation.AREA)
_FINE = int(
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
)


def to_rgb(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    height: int,
    width: int,
    *,
    rough: bool = False,
) -> np.ndarray:
    """uint8 (height, width, 3): colour conversion and resize in one call; a view of new memory.

    `reformatter` keeps what swscale prepares: use one per source and target shape. `rough` takes
    swscale's default chroma: good enough for what nobody looks at.
    """
    native = (frame.height, frame.width) == (height, width)
    rgb = reformatter.reformat(
        frame,
        width,
        height,
        "rgb24",
        interpolation=_ROUGH if rough or native else _FINE,
        threads=1,
    )
    plane: Any = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height]
    return rows[:, : 3 * width].reshape(height, width, 3)


def to_luma(
    reformatter: VideoReformatter, frame: av.VideoFrame, height: int, width: int
) -> np.ndarray:
    """uint8 (height, width): the frame's luma, 0 to 255, resized; a view of new memory."""
    luma = reformatter.reformat(frame, width, height, "gray", interpolation=_ROUGH, threads=1)
    plane: Any = luma.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]


def resize_rgb(pixels: np.ndarray, crop: Crop, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): the crop of an RGB picture uint8 (h, w, 3).

    Raises DecodeError("corrupt") where the picture does not hold the crop.
    """
    check_crop(crop, pixels.shape[1], pixels.shape[0])
    x, y, crop_width, crop_height = crop
    cropped = np.ascontiguousarray(pixels[y : y + crop_height, x : x + crop_width])
    if (crop_height, crop_width) == (height, width):
        return cropped
    return to_rgb(VideoReformatter(), av.VideoFrame.from_ndarray(cropped), height, width)


def check_crop(crop: Crop, width: int, height: int) -> None:
    """Raises DecodeError("corrupt") unless a picture of width x height holds the crop."""
    x, y, crop_width, crop_height = crop
    if min(x, y) < 0 or x + crop_width > width or y + crop_height > height:
        raise DecodeError("corrupt", f"a frame of {width}x{height} does not hold the crop {crop}")
