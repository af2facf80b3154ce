"""Which frame shows at which time, and clips filled from frames that arrive in order.

The rule: at time t the last frame with pts <= t is on display. It holds for constant and variable
frame rates alike; an index times a frame rate never enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

from pipeline.decode.decoder import ClipRequest, DecodeError

Frame = TypeVar("Frame")


def display_pts(request: ClipRequest, time_base: tuple[int, int]) -> list[int]:
    """Per frame of a clip the latest pts that it may have: start_pts + k / fps in ticks, exactly.

    Where a tick is a millisecond or less (Matroska, mp4) pts are themselves rounded times, so these
    are rounded to the nearest tick too; in coarse clocks (AVI, a tick a frame) they are rounded
    down. The last tick of the span is the upper bound.
    """
    numerator, denominator = time_base
    ticks = Fraction(denominator, numerator) / Fraction(request.fps).limit_denominator(100_000)
    half = Fraction(1, 2) if 1000 * numerator <= denominator else Fraction(0)
    last = request.end_pts - 1
    return [
        min(request.start_pts + (k * ticks + half).__floor__(), last)
        for k in range(request.num_frames)
    ]


def mark_shown(
    frames: Iterable[tuple[int, Frame]], fps: int, time_base: tuple[int, int], last_ticks: int
) -> Iterator[tuple[int, Frame, bool]]:
    """(pts, frame, whether it is on display at a multiple of 1 / fps from the first frame).

    The last frame is shown for `last_ticks`; one that damage follows comes before its DecodeError.
    """
    numerator, denominator = time_base
    held: tuple[int, Frame] | None = None
    first = wanted = 0  # the next multiple that no frame was shown for
    damage = None

    def mark(until_pts: int) -> tuple[int, Frame, bool]:
        nonlocal wanted
        assert held is not None
        due = -((first - until_pts) * numerator * fps // denominator)  # multiples before until_pts
        is_shown, wanted = due > wanted, max(due, wanted)
        return *held, is_shown

    try:
        for pts, frame in frames:
            if held is None:
                first = pts
            else:
                yield mark(pts)
            held = pts, frame
    except DecodeError as error:
        damage = error
    if held is not None:
        yield mark(held[0] + last_ticks)
    if damage is not None:
        raise damage


class ClipFiller(Generic[Frame]):
    """Fills the clips of `requests` from frames pushed in pts order, each converted only if shown.

    `convert(frame, request)` gives uint8 (height, width, 3).
    """

    def __init__(
        self,
        requests: Sequence[ClipRequest],
        time_base: tuple[int, int],
        convert: Callable[[Frame, ClipRequest], np.ndarray],
    ) -> None:
        self._requests = requests
        self._convert = convert
        self._slots = sorted(
            (pts, index, k)
            for index, request in enumerate(requests)
            for k, pts in enumerate(display_pts(request, time_base))
        )
        self._next_slot = 0
        self._clips: dict[int, np.ndarray] = {}
        self._shown: dict[int, Frame] = {}
        self._missing = [request.num_frames for request in requests]
        self._next_clip = 0
        self._held: Frame | None = None

    @property
    def wanted_pts(self) -> int | None:
        """The earliest display time that is not filled yet; None when every clip is."""
        return self._slots[self._next_slot][0] if self._next_slot < len(self._slots) else None

    def push(self, pts: int, frame: Frame) -> Iterator[np.ndarray]:
        """Takes the next frame, shown from `pts` on; yields the clips that this completes."""
        while (wanted := self.wanted_pts) is not None and wanted < pts:
            yield from self._fill(frame if self._held is None else self._held)
        self._held = frame

    def finish(self, until_pts: int | None = None) -> Iterator[np.ndarray]:
        """Holds the last frame to the end, or until `until_pts`; yields the clips that completes.

        Raises DecodeError("empty") where no frame was pushed.
        """
        if self._held is None:
            raise DecodeError("empty", "no frames")
        while (wanted := self.wanted_pts) is not None:
            if until_pts is not None and wanted >= until_pts:
                return
            yield from self._fill(self._held)

    def _fill(self, frame: Frame) -> Iterator[np.ndarray]:
        _, index, k = self._slots[self._next_slot]
        self._next_slot += 1
        request = self._requests[index]
        if index not in self._clips:
            shape = (request.num_frames, request.height, request.width, 3)
            self._clips[index] = np.empty(shape, np.uint8)
        clip = self._clips[index]
        if self._shown.get(index) is frame:
            clip[k] = clip[k - 1]
        else:
            clip[k] = self._convert(frame, request)
            self._shown[index] = frame
        self._missing[index] -= 1
        while self._next_clip < len(self._requests) and not self._missing[self._next_clip]:
            self._shown.pop(self._next_clip, None)
            done = self._clips.pop(self._next_clip)
            self._next_clip += 1
            yield done
