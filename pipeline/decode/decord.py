"""The optional decoder decord (0.6.0, FFmpeg 4.1): H.264 only, the same frames as `pyav`.

decord counts frames; which pts each has is read from the packets by PyAV, so both decoders show the
same frame at the same time. At native size 8-bit progressive pixels are equal too; resized they
differ by about one level in 255, since decord has made RGB of them before. Scans are PyAV's: shots
and scores do not depend on the decoder, damage is found (decord conceals it, or fails at a random
frame before it), and a damaged file gives no frames at all.

Refused as `unsupported_codec` is what decord gets wrong: other codecs, hidden frames, a file whose
best stream is not its first. It decodes ahead without bound: prefer `pyav` for long videos and for
files of strangers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.container import OpenVideo
from pipeline.decode.decoder import (
    ClipRequest,
    DecodeError,
    DecodeLimits,
    Probe,
    ScanFrame,
    gather_scan,
)
from pipeline.decode.pyav import PyAVDecoder
from pipeline.decode.resize import resize_rgb
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
        scan = gather_scan(PyAVDecoder(self._limits).scan(path))
        greys = dict(zip(scan.grey_pts.tolist(), scan.greys, strict=True))
        if scan.error is not None:
            raise DecodeError(scan.error.kind, scan.error.message)
        _Reader(path, probe, pts, self._limits).frame(int(np.argmax(displayed)))
        for at, frame in zip(scan.pts.tolist(), scan.frames, strict=True):
            yield ScanFrame(at, frame, greys.get(at))

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
        filler = ClipFiller[np.ndarray](requests, probe.time_base, _convert)
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
        height, width, _ = self._shape
        if frame.shape[:2] != (height, width):
            raise DecodeError(
                "unsupported_codec",
                f"{self._path}: decord shows {frame.shape[1]}x{frame.shape[0]} pixels, PyAV "
                f"{width}x{height}: another stream or a changed size",
            )
        rows = frame.reshape(height, -1)[:, : 3 * width]  # small pictures come with padded rows
        self._num_frames += 1
        return rows.reshape(self._shape)


def _convert(frame: np.ndarray, request: ClipRequest) -> np.ndarray:
    return resize_rgb(frame, request.crop, request.height, request.width)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
