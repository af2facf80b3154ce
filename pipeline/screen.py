"""Screen: a cheap look at a file before all of it is decoded.

What the header says costs nothing, and key frames some per cent of a full pass. A file that a rule
of `screen.drop` holds for is one row of the accounts, `dropped:<rule>`, and is not decoded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from pipeline.clip import Clip, failed_source
from pipeline.config import ScreenSettings
from pipeline.decode.decoder import Media, Probe
from pipeline.decode.errors import DecodeError
from pipeline.decode.passes import Decoder
from pipeline.decode.scan import SCAN_HEIGHT, SCAN_WIDTH
from pipeline.plan import PlannedSource
from pipeline.scores import PICTURE_SCORES, score_frames

MIN_KEY_FRAMES = 3
_MIN_COVERED = 0.5  # share of the file that the key frames span, for them to speak for it


def screened_out(
    decoder: Decoder, media: Media, probe: Probe, settings: ScreenSettings
) -> str | None:
    """The first rule that drops the file; None: it is to be decoded.

    What is not known drops nothing: a claim that the header does not make, too few key frames.
    """
    file = _Screened(decoder, media, probe, settings.max_key_frames)
    held = (name for name, rule in settings.rules.items() if rule.drops(file.score(rule.score)))
    return next(held, None)


def screened_file(source: PlannedSource, probe: Probe, rule: str) -> Clip:
    """The row of a file that a rule dropped."""
    row = failed_source(source.source_id, source.uri, f"dropped:{rule}")
    return replace(
        row,
        end_seconds=round(probe.duration_seconds or 0.0, 6),
        source_width=probe.width,
        source_height=probe.height,
    )


class _Screened:
    """A file's scores, each made when it is first asked for."""

    def __init__(self, decoder: Decoder, media: Media, probe: Probe, max_key_frames: int) -> None:
        self._decoder = decoder
        self._media = media
        self._probe = probe
        self._max_key_frames = max_key_frames

    def score(self, name: str) -> float | None:
        if name in PICTURE_SCORES:
            return self._picture_scores.get(name)
        value = getattr(self._probe, name)
        return None if value is None else float(value)

    @cached_property
    def _picture_scores(self) -> dict[str, float]:
        """Medians over the key frames; empty where they do not speak for the file."""
        if self._probe.kind == "image":
            return {}
        found, seconds = [], 0.0
        try:
            for key in self._decoder.keyframes(
                self._media,
                height=SCAN_HEIGHT,
                width=SCAN_WIDTH,
                max_frames=self._max_key_frames,
            ):
                found.append(score_frames(key.pixels, key.seconds))
                seconds = float(key.seconds[-1])
        except DecodeError:
            return {}  # the full pass says what is wrong
        is_all = len(found) < self._max_key_frames
        duration = self._probe.duration_seconds
        is_most = duration is not None and seconds >= _MIN_COVERED * duration
        if len(found) < MIN_KEY_FRAMES or not (is_all or is_most):
            return {}
        return {
            name: float(np.median([each[name] for each in found if each[name] is not None]))
            for name in PICTURE_SCORES
        }
