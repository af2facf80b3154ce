"""Analysis: one pass over a file's small frames becomes rows: clips with scores, and what is none.

Shots are cut into windows; what is in transition, or too short, is a row that says so. The rows of
a file cover it from its first frame to its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline import picture_hash, scores
from pipeline.clip import Clip, cut_windows, dropped_span, make_buckets
from pipeline.config import BuildConfig, parse_bucket
from pipeline.decode.decoder import Probe
from pipeline.decode.scan import Scan
from pipeline.shots import Shot, Transition, find_shots


def analyse(template: Clip, probe: Probe, scan: Scan, config: BuildConfig) -> Iterator[Clip]:
    """The rows of a file that was scanned; `template` carries what they share (source, URI)."""
    for piece in find_shots(scan.pts, scan.frames, probe.time_base, config.shots):
        for clip in _clips(template, probe, piece, config):
            yield _scored(clip, probe, scan.pts, scan.frames)


def _clips(
    template: Clip, probe: Probe, piece: Shot | Transition, config: BuildConfig
) -> Iterator[Clip]:
    span = (piece.start_pts, piece.end_pts)
    seconds = (span[1] - span[0]) * probe.time_base[0] / probe.time_base[1]
    if isinstance(piece, Transition):
        yield dropped_span(template, probe, *span, config.clips.fps, piece.kind)
    elif probe.kind == "video" and seconds < config.shots.shortest_seconds:
        yield dropped_span(template, probe, *span, config.clips.fps, "too_short")
    else:
        buckets = make_buckets(parse_bucket(text) for text in config.clips.buckets)
        yield from cut_windows(template, probe, *span, config.clips.fps, buckets)


def _scored(clip: Clip, probe: Probe, pts: np.ndarray, frames: np.ndarray) -> Clip:
    """The clip with its place in seconds, its scores and its picture hash."""
    numerator, denominator = probe.time_base
    seconds = (pts - pts[0]) * numerator / denominator
    # the frame on screen where the clip starts may have come before it
    first = max(int(np.searchsorted(pts, clip.start_pts, side="right")) - 1, 0)
    last = max(int(np.searchsorted(pts, clip.end_pts)), first + 1)
    start, end = (
        round(float((edge - pts[0]) * numerator / denominator), 6)
        for edge in (clip.start_pts, clip.end_pts)
    )
    values = scores.score_frames(frames[first:last], seconds[first:last])
    return replace(
        clip,
        start_seconds=start,
        end_seconds=end,
        scores={name: _rounded(value) for name, value in values.items()},
        picture_hash=picture_hash.picture_hash(frames[first:last]),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
