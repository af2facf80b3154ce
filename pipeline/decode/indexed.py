"""Readers by index: libraries that find the frames of a file themselves, decord and torchcodec.

Which pts the frames have is read from the packets by PyAV, and the library must agree about times
and size; so every decoder shows the same frame at the same time, or refuses the file as
`unsupported_codec`. Scans and key frames are PyAV's: shots and scores do not depend on the library,
and damage is found. A file that the library cannot read whole gives no frames at all.

Pixels are made RGB at full size before they are cropped and resized, which costs more and differs
by about one level in 255; at native size those of 8-bit progressive video are equal. What needs
more than that (fields, tone mapping, transparency, pixels that are not square) is refused, and so
is a file whose first frame comes in other colours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Literal, Protocol

import numpy as np

from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Media, Probe, View
from pipeline.decode.errors import Corrupt, DecodeError, TimedOut, UnsupportedCodec
from pipeline.decode.packets import read_packets
from pipeline.decode.picture import resize_rgb
from pipeline.decode.pyav import PyAVReader
from pipeline.decode.reader import name_of
from pipeline.decode.sampling import Shown

_MAX_LEVELS = 0.5  # mean difference of the first frame


class FrameTable(Protocol):
    """A file opened by a library. What it cannot do, it says by LibraryError."""

    def frame(self, index: int, seconds: float) -> np.ndarray:
        """uint8 (h, w, 3) RGB, upright: by pts the `index`-th of all packets, which begins then."""


class LibraryError(Exception):
    """A library cannot read a file: it may be damaged, or (`is_refusal`) beyond what it does."""

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class IndexedReader:
    """One video, open: a `Reader` of the frames of decord or torchcodec."""

    damage: DecodeError | None = None

    def __init__(
        self,
        library: Literal["decord", "torchcodec"],
        media: Media,
        limits: DecodeLimits,
        settings: DecodeSettings,
    ) -> None:
        self._library = library
        self._name = name_of(media)
        self._media = media
        self._limits = limits
        self._settings = settings
        self._deadline = time.monotonic() + limits.timeout_seconds
        self._num_frames = 0
        with closing(PyAVReader(media, limits, settings)) as reader:
            self._probe = reader.probe()
            self._check(self._probe, settings)
            first = next(reader.frames())
            self._start_pts = first.pts
            self.time_base, self.step_pts = reader.time_base, reader.step_pts
            view = View(height=self._probe.height, width=self._probe.width)
            truth = reader.picture(first.frame, view)
        packets = read_packets(media, limits, settings)
        self._pts = packets.pts
        self._shown = np.flatnonzero(packets.displayed)
        self._seconds = self._pts * self.time_base[0] / self.time_base[1]
        try:
            if library == "decord":
                from pipeline.decode.decord import DecordTable

                self._table: FrameTable = DecordTable(
                    media, self._probe, self._seconds, packets.refreshes
                )
            else:
                from pipeline.decode.torchcodec import TorchCodecTable

                self._table = TorchCodecTable(media, packets.stream_index)
        except LibraryError as error:
            raise self._failed(error) from None
        levels = _distance(self._frame(int(self._shown[0])), truth)
        if levels > _MAX_LEVELS:
            raise self._refused(f"shows other pixels than PyAV, by {levels:.1f} levels in 255")

    def close(self) -> None:
        del self._table

    def probe(self) -> Probe:
        return self._probe

    def start_pts(self) -> int:
        return self._start_pts

    def show(self, wanted: Callable[[], int | None]) -> Iterator[Shown[np.ndarray]]:
        pts = self._pts[self._shown]
        while (wanted_pts := wanted()) is not None:
            place = max(int(np.searchsorted(pts, wanted_pts, side="right")) - 1, 0)
            until = int(pts[place + 1]) if place + 1 < len(pts) else None
            yield Shown(self._frame(int(self._shown[place])), int(pts[place]), until)
            if until is None:
                return

    def picture(self, frame: np.ndarray, view: View) -> np.ndarray:
        return resize_rgb(frame, view)

    def _frame(self, index: int) -> np.ndarray:
        """uint8 (height, width, 3): the frame that is `index`-th by pts."""
        if time.monotonic() > self._deadline:
            message = f"{self._name}: over timeout_seconds ({self._limits.timeout_seconds:g})"
            raise TimedOut(message, self._num_frames)
        try:
            frame = self._table.frame(index, float(self._seconds[index]))
        except LibraryError as error:
            raise self._failed(error) from None
        height, width = self._probe.height, self._probe.width
        if frame.shape[:2] != (height, width):
            raise self._refused(
                f"shows {frame.shape[1]}x{frame.shape[0]} pixels, PyAV {width}x{height}: another "
                "stream or a changed size"
            )
        self._num_frames += 1
        return frame

    def _check(self, probe: Probe, settings: DecodeSettings) -> None:
        reasons = {
            "shows interlaced frames combed": probe.interlaced and settings.interlaced == "field",
            f"does not map {probe.transfer}": probe.transfer != "sdr"
            and settings.hdr == "tone_map",
            "drops transparency": probe.alpha == "blended",
            "counts pixels as square": probe.pixel_aspect != 1,
        }
        for reason, holds in reasons.items():
            if holds:
                raise self._refused(reason)

    def _failed(self, error: LibraryError) -> DecodeError:
        if error.is_refusal or not self._is_damaged():
            return self._refused(str(error))
        return Corrupt(f"{self._name}: {self._library}: {error}", self._num_frames)

    def _is_damaged(self) -> bool:
        """Whether PyAV finds the file damaged; else it is the library that fails."""
        try:
            with closing(PyAVReader(self._media, self._limits, self._settings)) as reader:
                for _ in reader.frames():
                    pass
                return reader.damage is not None
        except DecodeError:
            return True

    def _refused(self, reason: str) -> DecodeError:
        return UnsupportedCodec(f"{self._name}: {self._library} {reason}")


def failure(error: BaseException) -> LibraryError:
    """A library's own exception, by its first line."""
    lines = str(error).strip().splitlines()
    return LibraryError(lines[0] if lines else type(error).__name__)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean absolute difference of two pictures uint8 (h, w, 3)."""
    return float(np.abs(ours.astype(np.int16) - theirs).mean())
