"""The optional decoder decord (0.6.0, FFmpeg 4.1): H.264 only, the same frames as `pyav`.

decord counts frames; which pts each has is read from the packets by PyAV, so both decoders show the
same frame at the same time. Pixels differ a little: decord converts at native size, and the resize
works on RGB. What decord gets wrong elsewhere (AV1, open groups of pictures, hidden frames, another
one of several streams) is refused as `unsupported_codec`. Damage that its FFmpeg conceals stays
concealed, and it decodes ahead without bound: prefer `pyav` for files of strangers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.decoder import (
    SCAN_HEIGHT,
    SCAN_WIDTH,
    ClipRequest,
    DecodeError,
    DecodeLimits,
    Probe,
    ScanFrame,
)
from pipeline.decode.images import resize
from pipeline.decode.pyav import OpenVideo, PyAVDecoder
from pipeline.decode.sampling import ClipFiller, display_pts


class DecordDecoder:
    """Decodes H.264 videos with decord; `limits` hold for each call."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits

    def probe(self, path: str | Path) -> Probe:
        probe = PyAVDecoder(self._limits).probe(path)
        if probe.codec != "h264":
            raise DecodeError(
                "unsupported_codec", f"{path}: decord is used for h264 only, not {probe.codec}"
            )
        return probe

    def scan(self, path: str | Path) -> Iterator[ScanFrame]:
        probe = self.probe(path)
        with OpenVideo(path, self._limits) as video:
            pts, displayed = video.packet_pts()
        reader = _Reader(path, probe, pts, self._limits)
        for index in np.flatnonzero(displayed):
            yield ScanFrame(int(pts[index]), _resized(reader.frame(int(index)), None))

    def clips(self, path: str | Path, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        if not requests:
            return
        probe = self.probe(path)
        with OpenVideo(path, self._limits) as video:
            pts, displayed = video.packet_pts()
        reader = _Reader(path, probe, pts, self._limits)
        shown = np.flatnonzero(displayed)
        wanted = [edge for request in requests for edge in display_pts(request, probe.time_base)]
        needed = np.searchsorted(pts[shown], np.unique(wanted), side="right") - 1
        filler = ClipFiller[np.ndarray](requests, probe.time_base, _resized)
        for index in shown[np.unique(np.maximum(needed, 0))]:
            yield from filler.push(int(pts[index]), reader.frame(int(index)))
        yield from filler.finish()


class _Reader:
    """decord's reader of one file, checked against what PyAV says of it."""

    def __init__(self, path: str | Path, probe: Probe, pts: np.ndarray, limits: DecodeLimits):
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, RuntimeError, AssertionError)
        self._path = path
        self._shape = (probe.height, probe.width, 3)
        self._deadline = time.monotonic() + limits.timeout_seconds
        self._limits = limits
        self._num_frames = 0
        try:
            self._reader: Any = decord.VideoReader(str(path), num_threads=1)
            seconds = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except self._errors as error:
            raise DecodeError("corrupt", f"{path}: decord: {_last_line(error)}") from None
        expected = pts * probe.time_base[0] / probe.time_base[1]
        if len(seconds) != len(expected) or not np.allclose(
            seconds - seconds[0], expected - expected[0], rtol=1e-5, atol=2e-3
        ):
            raise DecodeError(
                "unsupported_codec",
                f"{path}: decord sees {len(seconds)} frames at other times than the "
                f"{len(expected)} of PyAV",
            )

    def frame(self, index: int) -> np.ndarray:
        """uint8 (height, width, 3): the frame that is `index`-th by pts."""
        if time.monotonic() > self._deadline:
            message = f"{self._path}: over timeout_seconds ({self._limits.timeout_seconds:g})"
            raise DecodeError("timeout", message, self._num_frames)
        try:
            self._reader.seek_accurate(index)
            frame = self._reader.next().asnumpy()
        except self._errors as error:
            message = f"{self._path}: decord: {_last_line(error)}"
            raise DecodeError("corrupt", message, self._num_frames) from None
        except StopIteration:
            raise DecodeError("corrupt", f"{self._path}: ends early", self._num_frames) from None
        if frame.shape != self._shape:
            raise DecodeError(
                "unsupported_codec",
                f"{self._path}: decord shows {frame.shape[1]}x{frame.shape[0]} pixels, PyAV "
                f"{self._shape[1]}x{self._shape[0]}: another stream or a changed size",
            )
        self._num_frames += 1
        return frame


def _resized(frame: np.ndarray, request: ClipRequest | None) -> np.ndarray:
    """The request's crop at its size; the whole frame at the size of a scan without one."""
    height, width = frame.shape[:2]
    crop, target = (0, 0, width, height), (SCAN_HEIGHT, SCAN_WIDTH)
    if request is not None:
        crop, target = request.crop, (request.height, request.width)
    if crop == (0, 0, width, height) and target == (height, width):
        return frame
    from PIL import Image

    return resize(Image.fromarray(frame), crop, *target)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
