"""Which frame shows at which time, and clips filled from frames that arrive in order.

The rule: at time t the last frame with pts <= t is on display. It holds for constant and variable
frame rates alike; an index times a frame rate never enters.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from pipeline.decode.decoder import ClipRequest, View

Frame = TypeVar("Frame")


class Wanted(NamedTuple):
    """Frames that belong together: those on display at growing times `pts`, seen as `view`."""

    pts: Sequence[int]
    view: View


class Shown(NamedTuple, Generic[Frame]):
    """A frame on display from `pts` until `until_pts`; None for the last one."""

    frame: Frame
    pts: int
    until_pts: int | None


def ticks_per_frame(fps: float, time_base: tuple[int, int]) -> Fraction:
    """How many ticks of the file's clock a frame at `fps` lasts, exactly."""
    numerator, denominator = time_base
    return Fraction(denominator, numerator) / Fraction(fps).limit_denominator(100_000)


def display_pts(request: ClipRequest, time_base: tuple[int, int]) -> list[int]:
    """Per frame of a clip the latest pts that it may have: start_pts + k / fps in ticks, exactly.

    The last tick of the span is the upper bound.
    """
    ticks = ticks_per_frame(request.fps, time_base)
    last = request.end_pts - 1
    return [
        min(request.start_pts + whole_ticks(k * ticks, time_base), last)
        for k in range(request.num_frames)
    ]


def whole_ticks(ticks: Fraction, time_base: tuple[int, int]) -> int:
    """A time in whole ticks.

    Where a tick is a millisecond or less (Matroska, mp4) pts are themselves rounded times, so it is
    rounded to the nearest too; in coarse clocks (AVI, a tick a frame) it is rounded down.
    """
    numerator, denominator = time_base
    half = Fraction(1, 2) if 1000 * numerator <= denominator else Fraction(0)
    return (ticks + half).__floor__()


@dataclass
class _Filling(Generic[Frame]):
    """A clip that is being filled."""

    view: View
    pixels: np.ndarray
    pts: np.ndarray
    num_filled: int = 0
    last: Frame | None = field(default=None, repr=False)


class ClipFiller(Generic[Frame]):
    """Fills what is `wanted` from frames shown in pts order, each converted only if shown.

    `wanted` may be endless: it is read as far as the times that have been reached. Its first times
    must grow; later times of one may lie behind the first of the next. `convert(frame, view)` gives
    uint8 (height, width, 3). Memory is that of the clips begun and not finished.
    """

    def __init__(
        self, wanted: Iterable[Wanted], convert: Callable[[Frame, View], np.ndarray]
    ) -> None:
        self._coming = iter(wanted)
        self._convert = convert
        self._slots: list[tuple[int, int, int]] = []  # (pts, clip, frame of it): a heap
        self._clips: dict[int, _Filling[Frame]] = {}
        self._num_begun = 0
        self._next_done = 0
        self._peeked: Wanted | None = None
        self._begin()

    def wanted_pts(self) -> int | None:
        """The earliest display time that is not filled yet; None when everything is."""
        return self._slots[0][0] if self._slots else None

    def show(self, shown: Shown[Frame]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Fills the times before the frame's end with it; yields (pts, pixels) of clips done."""
        until = shown.until_pts
        while self._slots and (until is None or self._slots[0][0] < until):
            _, index, k = heapq.heappop(self._slots)
            clip = self._clips[index]
            if clip.last is shown.frame:
                clip.pixels[k] = clip.pixels[k - 1]
            else:
                clip.pixels[k] = self._convert(shown.frame, clip.view)
                clip.last = shown.frame
            clip.pts[k] = shown.pts
            clip.num_filled += 1
            self._begin()
            yield from self._done()

    def rest(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What has been begun, as far as it is filled."""
        for _, clip in sorted(self._clips.items()):
            if clip.num_filled:
                yield clip.pts[: clip.num_filled], clip.pixels[: clip.num_filled]

    def _begin(self) -> None:
        """Begins the clips whose first time comes before the earliest that is open, or the next."""
        while True:
            if self._peeked is None:
                self._peeked = next(self._coming, None)
            following = self._peeked
            if following is None:
                return
            if self._slots and following.pts[0] >= self._slots[0][0]:
                return
            count, view = len(following.pts), following.view
            shape = (count, view.height, view.width, 3)
            self._clips[self._num_begun] = _Filling(
                view, np.empty(shape, np.uint8), np.empty(count, np.int64)
            )
            for k, pts in enumerate(following.pts):
                heapq.heappush(self._slots, (pts, self._num_begun, k))
            self._num_begun += 1
            self._peeked = None

    def _done(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while (clip := self._clips.get(self._next_done)) and clip.num_filled == len(clip.pts):
            del self._clips[self._next_done]
            self._next_done += 1
            yield clip.pts, clip.pixels
