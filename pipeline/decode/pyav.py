"""The default decoder: PyAV (FFmpeg inside this process), one thread, no copy at native size.

Every frame goes from the decoder's YUV straight to small RGB in one swscale call (area filter).
Interlaced frames stay woven, HDR is converted as if it were not, alpha is dropped, pixels count as
square.

A long gap between clips is jumped over where seeking is exact (mp4 and Matroska with common
codecs); a jump that misses is noticed by its pts, and the file is then read from its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from pipeline.decode.container import JumpMissed, OpenVideo, quarter_turns, turned
from pipeline.decode.decoder import (
    GREY_FPS,
    GREY_HEIGHT,
    GREY_WIDTH,
    SCAN_HEIGHT,
    SCAN_WIDTH,
    ClipRequest,
    DecodeError,
    DecodeLimits,
    Probe,
    ScanFrame,
)
from pipeline.decode.resize import Crop, check_crop, to_luma, to_rgb
from pipeline.decode.sampling import ClipFiller, mark_shown

_MIN_JUMP_SECONDS = 1.0


class PyAVDecoder:
    """Decodes videos with PyAV; `limits` hold for each call."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits

    def probe(self, path: str | Path) -> Probe:
        with OpenVideo(path, self._limits) as video:
            for _, frame in video.frames():
                return video.describe(frame)
        raise DecodeError("empty", f"{path}: no frames")

    def scan(self, path: str | Path) -> Iterator[ScanFrame]:
        with OpenVideo(path, self._limits) as video:
            small, grey = VideoReformatter(), VideoReformatter()
            shown = mark_shown(video.frames(), GREY_FPS, video.time_base, video.step_pts)
            for pts, frame, is_grey in shown:
                quarters = quarter_turns(frame)
                width, height = turned(SCAN_WIDTH, SCAN_HEIGHT, quarters)
                pixels = to_rgb(small, frame, height, width, rough=True)
                luma = None
                if is_grey:
                    width, height = turned(GREY_WIDTH, GREY_HEIGHT, quarters)
                    luma = _upright(to_luma(grey, frame, height, width), quarters)
                yield ScanFrame(pts, _upright(pixels, quarters), luma)
            if not video.num_frames:
                raise DecodeError("empty", f"{path}: no frames")

    def clips(self, path: str | Path, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        if not requests:
            return
        filler: ClipFiller[av.VideoFrame] | None = None
        for may_jump in (True, False):
            with OpenVideo(path, self._limits) as video:
                if filler is None:
                    converter = _Converter()
                    filler = ClipFiller(requests, video.time_base, converter.convert)
                try:
                    yield from _fill(filler, video, may_jump)
                    return
                except JumpMissed:
                    continue


class _Converter:
    """Crop, resize, colour conversion and rotation of frames, with what each shape needs cached."""

    def __init__(self) -> None:
        self._reformatters: dict[tuple[int, int, Crop], VideoReformatter] = {}
        self._croppers: dict[tuple[int, int, str, Crop], Any] = {}

    def convert(self, frame: av.VideoFrame, request: ClipRequest) -> np.ndarray:
        """uint8 (height, width, 3) RGB of the request's crop."""
        quarters = quarter_turns(frame)
        crop = _stored_crop(request.crop, frame.width, frame.height, quarters)
        width, height = turned(request.width, request.height, quarters)
        if crop != (0, 0, frame.width, frame.height):
            frame = self._crop(frame, crop)
        key = (width, height, crop)
        if key not in self._reformatters:
            self._reformatters[key] = VideoReformatter()
        pixels = to_rgb(self._reformatters[key], frame, height, width)
        return _upright(pixels, quarters)

    def _crop(self, frame: av.VideoFrame, crop: Crop) -> av.VideoFrame:
        key = (frame.width, frame.height, frame.format.name, crop)
        graph = self._croppers.get(key)
        if graph is None:
            x, y, width, height = crop
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base,
            )
            cropper = graph.add("crop", f"w={width}:h={height}:x={x}:y={y}:exact=1")
            sink = graph.add("buffersink")
            source.link_to(cropper)
            cropper.link_to(sink)
            graph.configure()
            self._croppers[key] = graph
        graph.push(frame)
        return cast(av.VideoFrame, graph.pull())


def _fill(
    filler: ClipFiller[av.VideoFrame], video: OpenVideo, may_jump: bool
) -> Iterator[np.ndarray]:
    """The clips from the frames of a file that is at its start, jumping over long gaps.

    Raises JumpMissed where a jump lands late or in the middle of something undecodable.
    """
    min_jump = _MIN_JUMP_SECONDS * video.time_base[1] / video.time_base[0]
    if not (may_jump and video.can_jump()):
        min_jump = math.inf
    jump_to = wanted = filler.wanted_pts
    if wanted is None or wanted <= min_jump:
        jump_to = None
    shown_until = None  # how long the last frame is known to be on display
    while True:
        before = None
        landing = jump_to
        if jump_to is not None:
            video.jump(jump_to)
        tried, jump_to = jump_to, None
        try:
            for pts, frame in video.frames():
                if landing is not None and pts > landing:
                    raise JumpMissed
                landing = None
                yield from filler.push(pts, frame)
                shown_until = pts + max(video.step_pts, 0 if before is None else pts - before)
                before = pts
                wanted = filler.wanted_pts
                if wanted is None:
                    return
                if wanted - pts > min_jump and wanted != tried:
                    tried = wanted
                    if video.key_pts_before(wanted) > pts + min_jump:
                        jump_to = wanted
                        break
        except DecodeError as error:
            if landing is not None and error.kind == "corrupt":
                raise JumpMissed from None
            if shown_until is not None:
                yield from filler.finish(shown_until)
            raise
        if landing is not None:
            raise JumpMissed
        if jump_to is None:
            yield from filler.finish()
            return


def _upright(pixels: np.ndarray, quarters: int) -> np.ndarray:
    return np.rot90(pixels, quarters) if quarters else pixels


def _stored_crop(crop: Crop, width: int, height: int, quarters: int) -> Crop:
    """A crop of the displayed picture as a crop of the stored one, which is width x height."""
    x, y, crop_width, crop_height = crop
    shown_width, shown_height = turned(width, height, quarters)
    check_crop(crop, shown_width, shown_height)
    if quarters == 1:
        return width - y - crop_height, x, crop_height, crop_width
    if quarters == 2:
        return width - x - crop_width, height - y - crop_height, crop_width, crop_height
    if quarters == 3:
        return y, height - x - crop_width, crop_height, crop_width
    return crop
