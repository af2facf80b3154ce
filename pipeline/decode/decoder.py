"""What a decoder is: the records that go in and out, the limits, the errors, the protocol.

Times are integers in the file's own clock, its time base: `pts * time_base[0] / time_base[1]` are
seconds. Sizes and crops are in displayed pixels, after rotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from tokenizer.settings import setting

SCAN_HEIGHT, SCAN_WIDTH = 36, 64
GREY_HEIGHT, GREY_WIDTH = 72, 128
GREY_FPS = 8

DecodeErrorKind = Literal[
    "open",  # missing, unreadable, or no format that is known
    "no_video",  # a media file without a picture stream
    "unsupported_codec",  # the decoder at hand cannot read this stream
    "too_large",  # over a limit: pixels, seconds, frames or bytes
    "corrupt",  # damaged: what came before the damage is right
    "empty",  # it opens, but no frame comes out
    "timeout",  # over the time limit
]


class DecodeError(Exception):
    """A file that cannot be decoded, or not to its end.

    `kind` is one of `DecodeErrorKind`; `num_frames` is how many frames came out before. Those are
    sound: a decoder stops at the first damage and conceals none.
    """

    def __init__(self, kind: DecodeErrorKind, message: str, num_frames: int = 0) -> None:
        if kind not in get_args(DecodeErrorKind):
            raise ValueError(f"kind ({kind!r}) must be one of {get_args(DecodeErrorKind)}")
        super().__init__(kind, message, num_frames)
        self.kind: DecodeErrorKind = kind
        self.message = message
        self.num_frames = num_frames

    def __str__(self) -> str:
        after = f" (after {self.num_frames} frames)" if self.num_frames else ""
        return f"{self.kind}: {self.message}{after}"


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a file may cost; beyond a limit it ends as `too_large` or `timeout`."""

    max_pixels: int = setting(
        8192 * 4608, "pixels of a frame; larger ones are refused before they are decoded"
    )
    max_seconds: float = setting(4 * 3600.0, "seconds from the first frame to the last")
    max_frames: int = setting(200_000, "frames of a file")
    max_file_bytes: int = setting(64 << 30, "bytes of a file")
    timeout_seconds: float = setting(900.0, "seconds that one pass over a file may take")

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} ({getattr(self, field.name)}) must be above 0")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a file says it is, with the size of its first decoded frame.

    `fps`, `duration_seconds` and `num_frames` are the header's claims: None when it makes none, and
    often wrong. `rotation` is how far the stored picture is turned anticlockwise to be displayed:
    0, 90, 180 or 270.
    """

    kind: Literal["video", "image"]
    width: int
    height: int
    fps: float | None
    duration_seconds: float | None
    num_frames: int | None
    time_base: tuple[int, int]
    codec: str
    container: str
    pixel_format: str
    rotation: int


class ScanFrame(NamedTuple):
    """One displayed frame, small: uint8 (36, 64, 3) RGB, whatever its aspect.

    `grey` is its luma, uint8 (72, 128), where it is the frame on display at a multiple of 1/8 s
    from the first one; None for the others.
    """

    pts: int
    frame: np.ndarray
    grey: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """A clip to decode: `num_frames` at `fps` from `start_pts`, all before `end_pts`.

    `crop` is (x, y, width, height) in displayed pixels; it is resized to `height` x `width`.
    """

    start_pts: int
    end_pts: int
    fps: float
    num_frames: int
    crop: tuple[int, int, int, int]
    height: int
    width: int


class Decoder(Protocol):
    """Reads one file at a time; every method raises DecodeError and leaves nothing open."""

    def probe(self, path: str | Path) -> Probe:
        """Opens the file and decodes its first frame."""

    def scan(self, path: str | Path) -> Iterator[ScanFrame]:
        """Every displayed frame in one pass, small, with strictly growing pts."""

    def clips(self, path: str | Path, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        """A uint8 array (num_frames, height, width, 3) RGB per request, in the order given.

        Frame k of a clip is the last frame of the file with pts <= start_pts + k / fps that is also
        before `end_pts` (the first frame, where none is as early). Requests are sorted by
        `start_pts`; the file is passed over once.
        """


@dataclass(frozen=True)
class Scan:
    """A whole scan: pts int64 (n,), frames uint8 (n, 36, 64, 3), and the damage that ended it.

    `greys`, uint8 (m, 72, 128), are the lumas of those that came with one, `grey_pts` (m,) theirs.
    """

    pts: np.ndarray
    frames: np.ndarray
    grey_pts: np.ndarray
    greys: np.ndarray
    error: DecodeError | None


def gather_scan(frames: Iterable[ScanFrame]) -> Scan:
    """A scan as arrays; where the file is damaged, what came before and the error.

    Memory is 6.9 kB a frame and 9.2 kB a grey one, once: the arrays grow in place.
    """
    gathered = _Stack((SCAN_HEIGHT, SCAN_WIDTH, 3))
    greys = _Stack((GREY_HEIGHT, GREY_WIDTH))
    error = None
    try:
        for each in frames:
            gathered.push(each.pts, each.frame)
            if each.grey is not None:
                greys.push(each.pts, each.grey)
    except DecodeError as damage:
        error = damage
    return Scan(*gathered.arrays(), *greys.arrays(), error)


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

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(pts int64 (n,), pictures uint8 (n, ...)); nothing is pushed afterwards."""
        self._resize(len(self._pts))
        return np.array(self._pts, np.int64), self._pictures

    def _resize(self, count: int) -> None:
        self._pictures.resize((count, *self._pictures.shape[1:]), refcheck=False)
