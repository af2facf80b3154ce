"""The default reader: PyAV (FFmpeg inside this process), one thread, no copy at full size.

A long gap is jumped over where seeking is exact (mp4 and Matroska with common codecs) and the index
knows a key frame that saves decoding; a jump that misses is noticed by its pts, and the file is
then read from its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import av
import numpy as np

from pipeline.decode.container import JumpMissed, OpenVideo
from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Media, Probe, View
from pipeline.decode.errors import DecodeError, Empty
from pipeline.decode.picture import PictureMaker
from pipeline.decode.reader import PlayedFrame
from pipeline.decode.sampling import Shown

_MIN_JUMP_SECONDS = 1.0


class PyAVReader:
    """One video, open: a `Reader` of PyAV's frames."""

    def __init__(self, media: Media, limits: DecodeLimits, settings: DecodeSettings) -> None:
        self._media = media
        self._limits = limits
        self._settings = settings
        self._video = OpenVideo(media, limits, settings)
        self._make = PictureMaker(self._video.pixel_aspect, settings)
        self.time_base = self._video.time_base
        self.step_pts = self._video.step_pts

    def close(self) -> None:
        self._video.close()

    @property
    def damage(self) -> DecodeError | None:
        return self._video.damage

    def probe(self) -> Probe:
        first = self._first()
        return self._video.describe(first.frame)

    def start_pts(self) -> int:
        return self._first().pts

    def frames(self) -> Iterator[PlayedFrame[av.VideoFrame]]:
        yield from self._video.frames()

    def key_frames(self) -> Iterator[PlayedFrame[av.VideoFrame]]:
        self._video.key_frames_only()
        yield from self._video.frames()

    def picture(self, frame: av.VideoFrame, view: View) -> np.ndarray:
        return self._make(frame, view)

    def show(self, wanted: Callable[[], int | None]) -> Iterator[Shown[av.VideoFrame]]:
        min_jump = _MIN_JUMP_SECONDS * self.time_base[1] / self.time_base[0]
        try:
            yield from self._played(wanted, min_jump if self._video.can_jump() else math.inf)
        except JumpMissed:
            self._reopen()
            yield from self._played(wanted, math.inf)

    def _played(
        self, wanted: Callable[[], int | None], min_jump: float
    ) -> Iterator[Shown[av.VideoFrame]]:
        """Frames from the file's start, jumping over gaps longer than `min_jump`.

        Raises JumpMissed where a jump lands late, in the middle of something undecodable, or among
        frames whose pts do not grow.
        """
        held: PlayedFrame[av.VideoFrame] | None = None
        gap = self.step_pts  # how long the last frame is known to be on display
        has_jumped = False
        pts_wanted = jump_to = wanted()
        if pts_wanted is None or pts_wanted <= min_jump:
            jump_to = None
        while pts_wanted is not None:
            landing = jump_to
            if jump_to is not None:
                self._video.jump(jump_to)
                has_jumped = True
            tried, jump_to = jump_to, None
            try:
                for played in self._video.frames():
                    if not self._video.clock_holds:
                        min_jump = math.inf
                    if has_jumped and (
                        min_jump == math.inf or (landing is not None and played.pts > landing)
                    ):
                        raise JumpMissed
                    if held is not None and landing is None:
                        gap = max(self.step_pts, played.pts - held.pts)
                    landing = None
                    if held is not None and pts_wanted < played.pts:
                        yield Shown(held.frame, held.pts, played.pts)
                        pts_wanted = wanted()
                        if pts_wanted is None:
                            return
                    held = played
                    if pts_wanted - played.pts > min_jump and pts_wanted != tried:
                        tried = pts_wanted
                        if self._video.key_pts_before(pts_wanted) > played.pts + min_jump:
                            jump_to = pts_wanted
                            break
            except DecodeError as error:
                is_damage = error.kind == "corrupt"  # else the next frame may well be there
                if is_damage and landing is not None:
                    raise JumpMissed from None
                if is_damage and held is not None and pts_wanted < held.pts + gap:
                    yield Shown(held.frame, held.pts, held.pts + gap)
                raise
            if landing is not None:
                raise JumpMissed
            if jump_to is None:
                if held is not None:
                    yield Shown(held.frame, held.pts, None)
                return

    def _first(self) -> PlayedFrame[av.VideoFrame]:
        """The first frame; the file is at its start again afterwards."""
        played = next(self._video.frames(), None)
        if played is None:
            raise Empty(f"{self._video.name}: no frames")
        self._reopen()
        return played

    def _reopen(self) -> None:
        self._video.close()
        self._video = OpenVideo(self._media, self._limits, self._settings)
