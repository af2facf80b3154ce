"""An open video file: its stream, its frames in display order, its limits and its errors.

Every frame is decoded by one thread. Which damage counts, and what becomes of the rest, is said by
the settings. Only the formats below are opened, so that a playlist that calls itself a video reads
no other file.
"""

from __future__ import annotations

import ctypes
import io
import math
import time
from collections.abc import Iterator
from typing import Any

import av

from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Media, Probe
from pipeline.decode.errors import (
    CannotOpen,
    Corrupt,
    DecodeError,
    NoVideo,
    TimedOut,
    TooLarge,
    UnsupportedCodec,
)
from pipeline.decode.picture import describe_picture
from pipeline.decode.reader import PlayedFrame, name_of

FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "m4v", "flv", "asf", "ogg", "gif"),
    *("h261", "h263", "h264", "hevc", "vvc", "vc1", "ivf", "obu", "mjpeg", "jpeg_pipe", "dirac"),
    *("nut", "mxf", "gxf", "dv", "rm", "wtv", "yuv4mpegpipe", "cavsvideo"),
)
"""FFmpeg's demuxers of films: none that follows a reference to another file."""

_SEEKABLE_FORMATS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores")
_MAX_FAILED_READS = 16  # in a row, with nothing read between; then the file ends
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
_FFMPEG_ERRORS = (av.FFmpegError, OSError, MemoryError, ValueError)


class OpenVideo:
    """A file that is being decoded: its first real video stream, limits enforced, always closed.

    `damage` is the first damage that was met, with counts so far. `clock_holds` until a frame had
    no pts of its own, or one that did not grow.
    """

    def __init__(self, media: Media, limits: DecodeLimits, settings: DecodeSettings) -> None:
        self.name = name_of(media)
        self._limits = limits
        self._settings = settings
        self._deadline = time.monotonic() + limits.timeout_seconds
        self.num_frames = 0
        self.damage: DecodeError | None = None
        self._key_packets_only = False
        self.clock_holds = True
        self._container = self._open(media, {"max_pixels": str(limits.max_pixels)})
        try:
            self._stream = self._choose_stream()
            self._check_size(media)
            base = self._stream.time_base
            if not base or base <= 0:
                raise Corrupt(f"{self.name}: the video has no clock")
            self.time_base = (base.numerator, base.denominator)
            rate = self._stream.average_rate or self._stream.guessed_rate or 25
            self.step_pts = max(1, round(1 / (rate * base)))
            if self.step_pts * base > limits.max_seconds:
                raise TooLarge(f"{self.name}: a frame lasts {float(self.step_pts * base):.3g} s")
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """FFmpeg's buffers of many sizes leave holes; the system gets them back, within 0.1 ms."""
        self._container.close()
        if _malloc_trim is not None:
            _malloc_trim(0)

    @property
    def stream_index(self) -> int:
        return int(self._stream.index)

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel; 1 where the file says nothing or nonsense.

        So does a ratio within 2 %: what encoders write to make up for a size that they rounded.
        """
        ratio = float(self._stream.sample_aspect_ratio or 1)
        return ratio if 1 / 4 <= ratio <= 4 and abs(ratio - 1) > 0.02 else 1.0

    def frames(self) -> Iterator[PlayedFrame[av.VideoFrame]]:
        """Frames in display order with strictly growing pts, from where the file stands.

        A frame without pts, or with one that does not grow, follows the last by a nominal frame.
        Ends with DecodeError where the settings say so.
        """
        limits = self._limits
        max_ticks = limits.max_seconds * self.time_base[1] / self.time_base[0]
        first: int | None = None
        last: int | None = None
        for frame, follows_damage in self._sound():
            pts = frame.pts
            if pts is None or (last is not None and pts <= last):
                self.clock_holds = False
                pts = None if last is None else last + self.step_pts
            last = pts = pts or 0
            first = pts if first is None else first
            if frame.width * frame.height > limits.max_pixels:
                raise self._too_large(frame.width, frame.height)
            if self.num_frames == limits.max_frames:
                raise self._error(TooLarge, f"more than max_frames ({limits.max_frames})")
            if pts - first > max_ticks:
                raise self._error(TooLarge, f"over max_seconds ({limits.max_seconds:g})")
            self.num_frames += 1
            yield PlayedFrame(pts, frame, follows_damage)

    def packets(self) -> Iterator[av.Packet]:
        """The packets of the stream as they lie in the file. Decodes nothing."""
        try:
            for packet in self._container.demux(self._stream):
                self._check_time()
                if packet.size:
                    yield packet
        except _FFMPEG_ERRORS as error:
            raise self._error(Corrupt, _reason(error)) from None

    def key_frames_only(self) -> None:
        """From here on `frames` gives key frames alone: the decoder never sees the others."""
        self._stream.codec_context.skip_frame = "NONKEY"
        self._key_packets_only = True

    def describe(self, frame: av.VideoFrame) -> Probe:
        """What the header says, with the size and nature of `frame`."""
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate
        duration = None
        if stream.duration:
            duration = stream.duration * self.time_base[0] / self.time_base[1]
        elif self._container.duration:
            duration = self._container.duration / av.time_base
        return describe_picture(
            frame,
            self.pixel_aspect,
            fps=float(rate) if rate else None,
            duration_seconds=duration,
            num_frames=stream.frames or None,
            time_base=self.time_base,
            codec=stream.codec_context.codec.canonical_name,
            container=self._container.format.name,
            has_hidden_alpha=stream.metadata.get("alpha_mode") == "1",
        )

    def can_jump(self) -> bool:
        """Whether frames behind a jump are those of a pass from the start.

        Where damage is concealed they are not: what conceals it is what was decoded before.
        """
        return (
            self._settings.strict
            and self._container.format.name.startswith(_SEEKABLE_FORMATS)
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

    def _open(self, media: Media, options: dict[str, str]) -> Any:
        options = {**options, "format_whitelist": ",".join(FORMATS)}
        file = io.BytesIO(media) if isinstance(media, bytes) else str(media)
        try:
            return av.open(file, options=options, metadata_errors="replace")
        except av.ArgumentError:
            raise CannotOpen(f"{self.name}: not in a video format that is read") from None
        except _FFMPEG_ERRORS as error:
            raise CannotOpen(f"{self.name}: {_reason(error)}") from None

    def _choose_stream(self) -> Any:
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            raise NoVideo(f"{self.name}: no video stream")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise UnsupportedCodec(f"{self.name}: unknown video codec")
        context.thread_count = 1
        context.options = {"max_pixels": str(self._limits.max_pixels)}
        if self._settings.strict:
            context.options = {**context.options, "err_detect": "explode"}
        return stream

    def _check_size(self, media: Media) -> None:
        """Raises TooLarge where the header, or the first frame, is over max_pixels.

        FFmpeg forgets a size that it refuses; it is then read again, by no codec at all.
        """
        width, height = self._stream.width, self._stream.height
        if not width * height:
            with self._open(media, {"codec_whitelist": "none"}) as container:
                for stream in container.streams.video:
                    if stream.index == self._stream.index and stream.codec_context is not None:
                        width, height = stream.width, stream.height
        if width * height > self._limits.max_pixels:
            raise self._too_large(width, height)

    def _sound(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        """The frames that the settings let through, each with whether it follows damage."""
        strict = self._settings.strict
        waits_for_key = follows_damage = False
        for found in self._decode():
            if isinstance(found, av.VideoFrame) and not (strict and found.is_corrupt):
                if waits_for_key and not found.key_frame:
                    continue
                yield found, follows_damage
                waits_for_key = follows_damage = False
                continue
            reason = "a frame is damaged" if isinstance(found, av.VideoFrame) else _reason(found)
            num_damaged = self.damage.num_damaged + 1 if self.damage else 1
            if self._settings.damage != "skip":
                self.damage = self._error(Corrupt, reason, num_damaged)
                raise self.damage
            first = self.damage.message if self.damage else f"{self.name}: {reason}"
            self.damage = Corrupt(first, self.num_frames, num_damaged)
            follows_damage = True
            waits_for_key = strict

    def _decode(self) -> Iterator[av.VideoFrame | Exception]:
        """What the packets give: frames, or the error of one."""
        num_failed = 0
        packets = self._container.demux(self._stream)
        while num_failed < _MAX_FAILED_READS:
            self._check_time()
            try:
                packet = next(packets, None)
            except IndexError:  # of a stream that began after the file was opened; not ours
                packets = self._container.demux(self._stream)
                continue
            except _FFMPEG_ERRORS as error:
                yield error
                num_failed += 1
                packets = self._container.demux(self._stream)
                continue
            if packet is None:
                return
            num_failed = 0
            if self._key_packets_only and packet.size and not packet.is_keyframe:
                continue
            try:
                yield from packet.decode()
                if self._key_packets_only and packet.size:  # alone: FFmpeg may sort them wrongly
                    yield from self._stream.codec_context.decode(None)
                    self._stream.codec_context.flush_buffers()
            except _FFMPEG_ERRORS as error:
                yield error

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise self._error(TimedOut, f"over timeout_seconds ({self._limits.timeout_seconds:g})")

    def _too_large(self, width: int, height: int) -> DecodeError:
        return self._error(
            TooLarge, f"{width}x{height} is over max_pixels ({self._limits.max_pixels})"
        )

    def _error(self, kind: type[DecodeError], message: str, num_damaged: int = 0) -> DecodeError:
        return kind(f"{self.name}: {message}", self.num_frames, num_damaged)


class JumpMissed(Exception):
    """A seek did not land where it should have; the file must be read from its start."""


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
