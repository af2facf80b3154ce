"""A scan: every frame of a file in one pass, small, as what shots and scores are found in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.decode.decoder import Media, View
from pipeline.decode.errors import DecodeError
from pipeline.decode.reader import PlayedFrame, Scanner

if TYPE_CHECKING:
    from pipeline.decode.passes import Decoder

SCAN_HEIGHT, SCAN_WIDTH = 36, 64
GREY_HEIGHT, GREY_WIDTH = 72, 128
GREY_FPS = 8

_SMALL = View(height=SCAN_HEIGHT, width=SCAN_WIDTH, rough=True)
_GREY = View(height=GREY_HEIGHT, width=GREY_WIDTH, rough=True, grey=True)


class ScanFrame(NamedTuple):
    """One displayed frame, small: uint8 (36, 64, 3) RGB, whatever its aspect.

    `grey` is its luma, uint8 (72, 128), where it is the frame on display at a multiple of 1/8 s
    from the first one; None for the others. `follows_damage`: frames before it are lost.
    """

    pts: int
    frame: np.ndarray
    grey: np.ndarray | None = None
    follows_damage: bool = False


@dataclass(frozen=True)
class Scan:
    """A whole scan: pts int64 (n,), frames uint8 (n, 36, 64, 3), and the damage that it met.

    `greys`, uint8 (m, 72, 128), are the lumas of those that came with one, `grey_pts` (m,) theirs.
    `after_damage` int64 (k,) are the indices of frames that follow lost ones.
    """

    pts: np.ndarray
    frames: np.ndarray
    grey_pts: np.ndarray
    greys: np.ndarray
    after_damage: np.ndarray
    error: DecodeError | None


def gather_scan(decoder: Decoder, media: Media) -> Scan:
    """A scan as arrays; where the file is damaged, what there is and the error, never raised.

    Memory is 6.9 kB a frame and 9.2 kB a grey one, once: the arrays grow in place.
    """
    gathered = _Stack((SCAN_HEIGHT, SCAN_WIDTH, 3))
    greys = _Stack((GREY_HEIGHT, GREY_WIDTH))
    after_damage = []
    error = None
    try:
        for index, each in enumerate(decoder.scan(media)):
            gathered.push(each.pts, each.frame)
            if each.grey is not None:
                greys.push(each.pts, each.grey)
            if each.follows_damage:
                after_damage.append(index)
        error = decoder.damage
    except DecodeError as damage:
        error = damage
    if error is not None and not decoder.keeps_damaged:
        gathered.clear()
        greys.clear()
        after_damage.clear()
    return Scan(*gathered.arrays(), *greys.arrays(), np.array(after_damage, np.int64), error)


def scan_frames(reader: Scanner[Any]) -> Iterator[ScanFrame]:
    """The frames of a reader, small."""
    for played, is_grey in _mark_shown(reader.frames(), reader.time_base, reader.step_pts):
        yield ScanFrame(
            played.pts,
            reader.picture(played.frame, _SMALL),
            reader.picture(played.frame, _GREY) if is_grey else None,
            played.follows_damage,
        )


def _mark_shown(
    frames: Iterable[PlayedFrame[Any]], time_base: tuple[int, int], last_ticks: int
) -> Iterator[tuple[PlayedFrame[Any], bool]]:
    """Each frame, and whether it is on display at a multiple of 1/8 s from the first one.

    The last frame is shown for `last_ticks`; one that damage follows comes before its DecodeError.
    """
    numerator, denominator = time_base
    held: PlayedFrame[Any] | None = None
    first = wanted = 0  # the next multiple that no frame was shown for
    damage = None

    def mark(until_pts: int) -> bool:
        nonlocal wanted
        # how many multiples lie before until_pts
        due = -((first - until_pts) * numerator * GREY_FPS // denominator)
        is_shown, wanted = due > wanted, max(due, wanted)
        return is_shown

    try:
        for played in frames:
            if held is None:
                first = played.pts
            else:
                yield held, mark(played.pts)
            held = played
    except DecodeError as error:
        damage = error
    if held is not None:
        yield held, mark(held.pts + last_ticks)
    if damage is not None:
        raise damage


class _Stack:
    """Pictures of one shape with their pts, in arrays that grow in place."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._pts: list[int] = []
        self._pictures = np.empty((64, *shape), np.uint8)

    def push(self, pts: int, picture: np.ndarray) -> None:
        if len(self._pts) == len(self._pictures):
            self._resize(2 * len(self._pictures))
        self._pictures[len(self._pts)] = picture
        self._pts.append(pts)

    def clear(self) -> None:
        self._pts.clear()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(pts int64 (n,), pictures uint8 (n, ...)); nothing is pushed afterwards."""
        self._resize(len(self._pts))
        return np.array(self._pts, np.int64), self._pictures

    def _resize(self, count: int) -> None:
        self._pictures.resize((count, *self._pictures.shape[1:]), refcheck=False)
