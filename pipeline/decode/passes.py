"""The decoder: what can be asked of a file, answered by one pass over the frames of a reader.

decoder = open_decoder("pyav")
decoder.probe("film.mp4")
decoder.sample("film.mp4", [0.5, 10.0], height=256, width=256)
for frames in decoder.stream("film.mp4", fps=8, height=128, width=128): ...
for frames in decoder.keyframes("film.mp4", height=128, width=128): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from math import ceil, inf, isfinite
from typing import Any, TypeAlias

import numpy as np

from pipeline.decode.decoder import ClipRequest, Crop, Frames, Media, Probe, View
from pipeline.decode.errors import DecodeError, Empty
from pipeline.decode.reader import Reader, Scanner
from pipeline.decode.sampling import (
    ClipFiller,
    Shown,
    Wanted,
    display_pts,
    ticks_per_frame,
    whole_ticks,
)
from pipeline.decode.scan import ScanFrame, scan_frames

OpenReader: TypeAlias = Callable[[Media], Reader[Any]]
OpenScanner: TypeAlias = Callable[[Media], Scanner[Any]]


class Decoder:
    """Reads one file at a time; every method raises DecodeError and leaves nothing open.

    `damage` is what the last pass met: the first damage, with how many packets were damaged. Where
    `keeps_damaged` holds, it is not raised when there are frames all the same. Sizes are in pixels,
    times in seconds from the file's first frame.
    """

    def __init__(
        self,
        open_reader: OpenReader,
        open_scanner: OpenScanner,
        max_seconds: float,
        *,
        keeps_damaged: bool,
    ) -> None:
        self._max_seconds = max_seconds
        self._open_reader = open_reader
        self._open_scanner = open_scanner
        self.keeps_damaged = keeps_damaged
        self.damage: DecodeError | None = None

    def probe(self, media: Media) -> Probe:
        """Opens the file and decodes its first frame."""
        with closing(self._open_reader(media)) as reader:
            return reader.probe()

    def sample(
        self,
        media: Media,
        seconds: Sequence[float],
        *,
        height: int,
        width: int,
        crop: Crop | None = None,
    ) -> Frames:
        """The frames on display at growing times; fewer where damage ends the file before."""
        if not len(seconds):
            nothing = np.empty(0, np.int64)
            return Frames(nothing, nothing / 1.0, np.empty((0, height, width, 3), np.uint8))
        if any(late < early for early, late in zip(seconds, seconds[1:])):
            raise ValueError("seconds must not shrink; sort them")
        if not (isfinite(seconds[0]) and isfinite(seconds[-1])):
            raise ValueError("seconds must be finite")
        view = View(height=height, width=width, crop=crop)
        with closing(self._open_reader(media)) as reader:
            start = reader.start_pts()
            tick = Fraction(*reader.time_base)
            times = [
                start + whole_ticks(Fraction(each) / tick, reader.time_base) for each in seconds
            ]
            filler = ClipFiller([Wanted(times, view)], reader.picture)
            with self._noting_damage(reader):
                for pts, pixels in self._filled(filler, reader):
                    return self._frames(pts, pixels, start, reader)
            for pts, pixels in filler.rest():
                return self._frames(pts, pixels, start, reader)
            raise _nothing(reader)

    def stream(
        self,
        media: Media,
        *,
        fps: float,
        height: int,
        width: int,
        crop: Crop | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        chunk_frames: int = 64,
    ) -> Iterator[Frames]:
        """Frames at `fps` over [start_seconds, end_seconds), in chunks; the last may be shorter.

        Without an end they go on until the last frame has been shown as long as the one before it.
        """
        if not 0 < fps < inf or chunk_frames < 1 or not 0 <= start_seconds < inf:
            raise ValueError(
                f"fps ({fps}) must be above 0, chunk_frames ({chunk_frames}) at least 1, "
                f"start_seconds ({start_seconds}) not below 0, and all finite"
            )
        if end_seconds is not None and not isfinite(end_seconds):
            raise ValueError(f"end_seconds ({end_seconds}) must be finite; None goes to the end")
        view = View(height=height, width=width, crop=crop)
        with closing(self._open_reader(media)) as reader:
            first = reader.start_pts()
            tick = Fraction(*reader.time_base)
            step = ticks_per_frame(fps, reader.time_base)
            offset = Fraction(start_seconds) / tick
            seconds = self._max_seconds if end_seconds is None else end_seconds
            num_frames = ceil((Fraction(seconds) - Fraction(start_seconds)) / (step * tick))

            def wanted() -> Iterator[Wanted]:
                for begin in range(0, num_frames, chunk_frames):
                    places = range(begin, min(begin + chunk_frames, num_frames))
                    times = [
                        first + whole_ticks(offset + k * step, reader.time_base) for k in places
                    ]
                    yield Wanted(times, view)

            filler = ClipFiller(wanted(), reader.picture)
            holds_last = end_seconds is not None
            with self._noting_damage(reader):
                for pts, pixels in self._filled(filler, reader, holds_last=holds_last):
                    yield self._frames(pts, pixels, first, reader)
            for pts, pixels in filler.rest():
                yield self._frames(pts, pixels, first, reader)

    def keyframes(
        self, media: Media, *, height: int, width: int, max_frames: int | None = None
    ) -> Iterator[Frames]:
        """The key frames, one by one: cheap, a few per cent of the cost of all, but of any number.

        Files of one key frame in minutes exist, files of nothing else, and trimmed ones that show
        none.
        """
        view = View(height=height, width=width, rough=True)
        with closing(self._open_scanner(media)) as reader, self._noting_damage(reader):
            first = None
            for index, played in enumerate(reader.key_frames()):
                if index == max_frames:
                    return
                first = played.pts if first is None else first
                pixels = reader.picture(played.frame, view)[None]
                yield self._frames(np.array([played.pts]), pixels, first, reader)
            if first is None and reader.damage is not None:
                raise reader.damage

    def clips(self, media: Media, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        """A uint8 array (num_frames, height, width, 3) RGB per request, in the order given.

        Frame k of a clip is the last frame of the file with pts <= start_pts + k / fps that is also
        before `end_pts` (the first frame, where none is as early). Requests are sorted by
        `start_pts`; the file is passed over once.
        """
        if not requests:
            return
        with closing(self._open_reader(media)) as reader:
            wanted = (Wanted(display_pts(each, reader.time_base), each.view) for each in requests)
            filler = ClipFiller(wanted, reader.picture)
            with self._noting_damage(reader):
                for _, pixels in self._filled(filler, reader):
                    yield pixels

    def scan(self, media: Media) -> Iterator[ScanFrame]:
        """Every displayed frame in one pass, small, with strictly growing pts."""
        with closing(self._open_scanner(media)) as reader, self._noting_damage(reader):
            scanned = scan_frames(reader)
            if (first := next(scanned, None)) is None:
                raise _nothing(reader)
            yield first
            yield from scanned

    def _filled(
        self, filler: ClipFiller[Any], reader: Reader[Any], *, holds_last: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What the filler wants, from a pass over the reader.

        The last frame is held for all times that follow, or as long as the one before it.
        """
        before: Shown[Any] | None = None
        for shown in reader.show(filler.wanted_pts):
            if shown.until_pts is None and not holds_last:
                step = reader.step_pts
                if before is not None and before.until_pts == shown.pts:
                    step = max(step, shown.pts - before.pts)
                shown = shown._replace(until_pts=shown.pts + step)
            yield from filler.show(shown)
            before = shown
        if before is None and filler.wanted_pts() is not None:
            raise _nothing(reader)

    @contextmanager
    def _noting_damage(self, reader: Reader[Any]) -> Iterator[None]:
        """Keeps what the pass says of damage; lets it end there, unless the settings raise it."""
        self.damage = None
        try:
            yield
        except DecodeError as error:
            if error is not reader.damage or not (self.keeps_damaged and error.num_frames):
                raise
        finally:
            self.damage = reader.damage

    @staticmethod
    def _frames(pts: np.ndarray, pixels: np.ndarray, first: int, reader: Reader[Any]) -> Frames:
        numerator, denominator = reader.time_base
        return Frames(pts, (pts - first) * (numerator / denominator), pixels)


def _nothing(reader: Reader[Any]) -> DecodeError:
    """Why there are no frames."""
    return reader.damage or Empty("no frames")
