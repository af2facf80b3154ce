"""An open video file: its stream, its frames in display order, its limits and its errors.

Every frame is decoded by one thread, and damage is never concealed (`err_detect=explode`): the
first damaged packet ends the file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from pipeline.decode.decoder import DecodeError, DecodeLimits, Probe

_SEEKABLE_FORMATS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores")


class OpenVideo:
    """A file that is being decoded: its first real video stream, limits enforced, always closed."""

    def __init__(self, path: str | Path, limits: DecodeLimits) -> None:
        self._path = path
        self._limits = limits
        self._deadline = time.monotonic() + limits.timeout_seconds
        self.num_frames = 0
        self._container = self._open()
        try:
            self._stream = self._choose_stream()
            base = self._stream.time_base
            if not base or base <= 0:
                raise DecodeError("corrupt", f"{path}: the video has no clock")
            self.time_base = (base.numerator, base.denominator)
            rate = self._stream.average_rate or self._stream.guessed_rate or 25
            self.step_pts = max(1, round(1 / (rate * base)))
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._container.close()

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """(pts, frame) in display order with strictly growing pts, from where the file stands.

        A frame without pts, or with one that does not grow, follows the last by a nominal frame.
        """
        limits = self._limits
        max_ticks = limits.max_seconds * self.time_base[1] / self.time_base[0]
        first: int | None = None
        last: int | None = None
        decoded = self._decode()
        while (frame := self._next(decoded)) is not None:
            pts = frame.pts
            if last is not None and (pts is None or pts <= last):
                pts = last + self.step_pts
            last = pts = pts or 0
            first = pts if first is None else first
            if frame.width * frame.height > limits.max_pixels:
                raise self._too_large(frame.width, frame.height)
            if self.num_frames == limits.max_frames:
                raise self._error("too_large", f"more than max_frames ({limits.max_frames})")
            if pts - first > max_ticks:
                raise self._error("too_large", f"over max_seconds ({limits.max_seconds:g})")
            if time.monotonic() > self._deadline:
                raise self._error("timeout", f"over timeout_seconds ({limits.timeout_seconds:g})")
            self.num_frames += 1
            yield pts, frame

    def packet_pts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each packet, by pts: int64 pts, and whether it is displayed. Decodes nothing."""
        pts: list[int] = []
        displayed: list[bool] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and len(pts) <= self._limits.max_frames:
                    if packet.pts is None:
                        raise self._error("unsupported_codec", "a packet has no pts")
                    pts.append(packet.pts)
                    displayed.append(not packet.is_discard)
        except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
            raise self._error("corrupt", _reason(error)) from None
        seconds = (max(pts) - min(pts)) * self.time_base[0] / self.time_base[1] if pts else 0
        if len(pts) > self._limits.max_frames or seconds > self._limits.max_seconds:
            raise self._error("too_large", "over max_frames or max_seconds")
        order = np.argsort(pts, kind="stable")
        return np.array(pts, np.int64)[order], np.array(displayed, bool)[order]

    def describe(self, frame: av.VideoFrame) -> Probe:
        """What the header says, with the size of `frame`."""
        stream = self._stream
        quarters = quarter_turns(frame)
        width, height = turned(frame.width, frame.height, quarters)
        rate = stream.average_rate or stream.guessed_rate
        duration = None
        if stream.duration:
            duration = stream.duration * self.time_base[0] / self.time_base[1]
        elif self._container.duration:
            duration = self._container.duration / av.time_base
        return Probe(
            kind="video",
            width=width,
            height=height,
            fps=float(rate) if rate else None,
            duration_seconds=duration,
            num_frames=stream.frames or None,
            time_base=self.time_base,
            codec=stream.codec_context.codec.canonical_name,
            container=self._container.format.name,
            pixel_format=frame.format.name,
            rotation=90 * quarters,
        )

    def can_jump(self) -> bool:
        return (
            self._container.format.name.startswith(_SEEKABLE_FORMATS)
            and self._stream.codec_context.codec.canonical_name in _SEEKABLE_CODECS
        )

    def key_pts_before(self, pts: int) -> float:
        """About where the last key frame at or before `pts` is; -inf where the index knows none."""
        index = self._stream.index_entries
        position = index.search_timestamp(pts, backward=True)
        return -math.inf if position < 0 else index[position].timestamp

    def jump(self, pts: int) -> None:
        """Goes to the last key frame at or before `pts`; `frames` then starts there."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            raise JumpMissed from None

    def _open(self) -> Any:
        options = {"max_pixels": str(self._limits.max_pixels)}
        try:
            return av.open(str(self._path), options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
            raise DecodeError("open", f"{self._path}: {_reason(error)}") from None

    def _choose_stream(self) -> Any:
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            raise DecodeError("no_video", f"{self._path}: no video stream")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise DecodeError("unsupported_codec", f"{self._path}: unknown video codec")
        if context.width * context.height > self._limits.max_pixels:
            raise self._too_large(context.width, context.height)
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(self._limits.max_pixels)}
        return stream

    def _decode(self) -> Iterator[av.VideoFrame]:
        for packet in self._container.demux(self._stream):
            if time.monotonic() > self._deadline:
                raise self._error(
                    "timeout", f"over timeout_seconds ({self._limits.timeout_seconds:g})"
                )
            yield from packet.decode()

    def _next(self, decoded: Iterator[av.VideoFrame]) -> av.VideoFrame | None:
        try:
            return next(decoded, None)
        except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
            raise self._error("corrupt", _reason(error)) from None

    def _error(self, kind: Any, message: str) -> DecodeError:
        return DecodeError(kind, f"{self._path}: {message}", self.num_frames)

    def _too_large(self, width: int, height: int) -> DecodeError:
        limit = self._limits.max_pixels
        return self._error("too_large", f"{width}x{height} is over max_pixels ({limit})")


class JumpMissed(Exception):
    """A seek did not land where it should have; the file must be read from its start."""


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns anticlockwise that display the frame; a nonsensical angle counts as none."""
    rotation = frame.rotation
    return 0 if rotation % 90 else rotation // 90 % 4


def turned(width: int, height: int, quarters: int) -> tuple[int, int]:
    """Width and height after so many quarter turns."""
    return (height, width) if quarters % 2 else (width, height)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
