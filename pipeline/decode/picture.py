"""Pictures: a decoder's frame to small upright RGB, in one swscale call from its own pixel format.

One area filter for every decoder and for images. Down it averages, up it interpolates linearly.
Chroma is computed for every pixel of the result and rounded accurately, at 1.4 times the cost of
swscale's default, which gives small pictures half of their horizontal colour resolution. At native
size pixels are those of PyAV's `to_ndarray`.

What is not a plain picture is made one: stored pixels that are not square are counted as the wide
or narrow ones that they are, an interlaced frame shows its first field, PQ and HLG are tone-mapped,
transparency is blended with black.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, cast

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.decode.decoder import Crop, DecodeSettings, Probe, View
from pipeline.decode.errors import Corrupt, UnsupportedCodec
from pipeline.decode.hdr import TRANSFERS, tone_map

_NATIVE = int(Interpolation.BILINEAR)  # of chroma, as PyAV does
_ROUGH = int(Interpolation.AREA)
_FINE = int(
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
)


class PictureMaker:
    """Makes pictures of one video's frames, with what each shape needs kept between frames."""

    def __init__(self, pixel_aspect: float, settings: DecodeSettings) -> None:
        self._pixel_aspect = pixel_aspect
        self._fields = settings.interlaced == "field"
        self._tone_map = settings.hdr == "tone_map"
        self._reformatters: dict[tuple[View, bool], VideoReformatter] = {}
        self._graphs: dict[tuple[int, int, str, Crop, bool], Any] = {}

    def __call__(self, frame: av.VideoFrame, view: View) -> np.ndarray:
        """uint8 (height, width, 3) RGB, or (height, width) luma where the view is grey."""
        quarters = quarter_turns(frame)
        field = self._fields and frame.interlaced_frame
        crop = self._stored_crop(view.crop, frame, quarters)
        if field or crop is not None:
            frame = self._cut(frame, crop, field)
        key = (view, field)
        if key not in self._reformatters:
            self._reformatters[key] = VideoReformatter()
        width, height = turned(view.width, view.height, quarters)
        transfer = TRANSFERS.get(int(frame.color_trc)) if self._tone_map else None
        pixels = to_pixels(self._reformatters[key], frame, height, width, view, transfer)
        return np.rot90(pixels, quarters) if quarters else pixels

    def _stored_crop(self, crop: Crop | None, frame: av.VideoFrame, quarters: int) -> Crop | None:
        """A crop of the displayed picture as one of the stored frame; None for all of it."""
        if crop is None:
            return None
        wide = square_width(frame.width, self._pixel_aspect)
        check_crop(crop, *turned(wide, frame.height, quarters))
        x, y, width, height = _unturned(crop, wide, frame.height, quarters)
        if wide != frame.width:
            scale = frame.width / wide
            left = min(round(x * scale), frame.width - 1)
            x, width = left, max(1, min(round((x + width) * scale), frame.width) - left)
        return None if (width, height) == (frame.width, frame.height) else (x, y, width, height)

    def _cut(self, frame: av.VideoFrame, crop: Crop | None, field: bool) -> av.VideoFrame:
        """The crop of a frame, of its first field alone where `field` says so; no copy."""
        x, y, width, height = crop or (0, 0, frame.width, frame.height)
        if field:
            y, height = y // 2, max(1, min(-(-(y + height) // 2), frame.height // 2) - y // 2)
        key = (frame.width, frame.height, frame.format.name, (x, y, width, height), field)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = Graph()
            links = [
                graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=frame.time_base,
                )
            ]
            if field:
                links.append(graph.add("field", "type=top"))
            links.append(graph.add("crop", f"w={width}:h={height}:x={x}:y={y}:exact=1"))
            links.append(graph.add("buffersink"))
            for source, target in zip(links, links[1:]):
                source.link_to(target)
            graph.configure()
        graph.push(frame)
        return cast(av.VideoFrame, graph.pull())


def to_pixels(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    height: int,
    width: int,
    view: View,
    transfer: Literal["pq", "hlg"] | None = None,
) -> np.ndarray:
    """Colour conversion and resize in one call; a view of new memory.

    `reformatter` keeps what swscale prepares: use one per source and target shape. Raises
    UnsupportedCodec for colours that it does not convert, such as YCgCo.
    """
    native = (frame.height, frame.width) == (height, width)
    if view.grey:
        pixel_format, depth = "gray", 1
    elif transfer is not None:
        pixel_format, depth = "rgb48le", 3
    elif has_alpha(frame.format.name):
        pixel_format, depth = "rgba", 4
    else:
        pixel_format, depth = "rgb24", 3
    try:
        made = reformatter.reformat(
            frame,
            width,
            height,
            pixel_format,
            interpolation=_NATIVE if native else _ROUGH if view.rough else _FINE,
            threads=1,
        )
    except av.FFmpegError as error:
        colours = f"{frame.format.name}, colour space {int(frame.colorspace)}"
        raise UnsupportedCodec(
            f"pictures in {colours} are not converted: {error.strerror}"
        ) from None
    plane: Any = made.planes[0]
    dtype = np.dtype(np.uint8 if transfer is None or view.grey else np.uint16)
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    pixels = rows[:height, : depth * width].reshape(height, width, depth)
    if view.grey:
        return pixels[..., 0]
    if transfer is not None:
        return tone_map(pixels, transfer)
    if depth == 4:
        return (pixels[..., :3] * (pixels[..., 3:].astype(np.uint16)) // 255).astype(np.uint8)
    return pixels


def resize_rgb(pixels: np.ndarray, view: View) -> np.ndarray:
    """uint8 (height, width, 3), or luma alone: the view of an RGB picture uint8 (h, w, 3).

    Raises Corrupt where the picture does not hold the crop.
    """
    x, y, width, height = view.crop or (0, 0, pixels.shape[1], pixels.shape[0])
    check_crop((x, y, width, height), pixels.shape[1], pixels.shape[0])
    cropped = np.ascontiguousarray(pixels[y : y + height, x : x + width])
    if (height, width) == (view.height, view.width) and not view.grey:
        return cropped
    frame = av.VideoFrame.from_ndarray(cropped)
    return to_pixels(VideoReformatter(), frame, view.height, view.width, view)


def check_crop(crop: Crop, width: int, height: int) -> None:
    """Raises Corrupt unless a picture of width x height holds the crop."""
    x, y, crop_width, crop_height = crop
    if min(x, y) < 0 or x + crop_width > width or y + crop_height > height:
        raise Corrupt(f"a frame of {width}x{height} does not hold the crop {crop}")


def describe_picture(
    frame: av.VideoFrame, pixel_aspect: float, *, has_hidden_alpha: bool, **facts: Any
) -> Probe:
    """A probe: the facts of the file, and what `frame` shows of its pictures."""
    quarters = quarter_turns(frame)
    wide = square_width(frame.width, pixel_aspect)
    width, height = turned(wide, frame.height, quarters)
    alpha: Literal["none", "blended", "dropped"] = "dropped" if has_hidden_alpha else "none"
    return Probe(
        kind="video",
        width=width,
        height=height,
        pixel_format=frame.format.name,
        rotation=90 * quarters,
        stored_width=frame.width,
        stored_height=frame.height,
        pixel_aspect=pixel_aspect,
        bit_depth=max((part.bits for part in frame.format.components), default=8),
        interlaced=bool(frame.interlaced_frame),
        transfer=TRANSFERS.get(int(frame.color_trc), "sdr"),
        alpha="blended" if has_alpha(frame.format.name) else alpha,
        **facts,
    )


@lru_cache(maxsize=64)
def has_alpha(pixel_format: str) -> bool:
    return any(part.is_alpha for part in av.VideoFormat(pixel_format).components)


def square_width(stored_width: int, pixel_aspect: float) -> int:
    """How many square pixels wide a stored row is shown."""
    return max(1, round(stored_width * pixel_aspect))


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns anticlockwise that display the frame; a nonsensical angle counts as none."""
    rotation = frame.rotation
    return 0 if rotation % 90 else rotation // 90 % 4


def turned(width: int, height: int, quarters: int) -> tuple[int, int]:
    """Width and height after so many quarter turns."""
    return (height, width) if quarters % 2 else (width, height)


def _unturned(crop: Crop, width: int, height: int, quarters: int) -> Crop:
    """A crop of the turned picture as a crop of the upright one, which is width x height."""
    x, y, crop_width, crop_height = crop
    if quarters == 1:
        return width - y - crop_height, x, crop_height, crop_width
    if quarters == 2:
        return width - x - crop_width, height - y - crop_height, crop_width, crop_height
    if quarters == 3:
        return y, height - x - crop_width, crop_height, crop_width
    return crop
