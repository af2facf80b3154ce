"""Analysis: one pass over a file's small frames becomes rows: clips with scores, and what is none.

Shots are cut into windows; what is in transition, or too short, is a row that says so. The rows of
a file cover it from its first frame to its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline import picture_hash, scores
from pipeline.bars import bars_share, content_cells, content_pixels
from pipeline.clip import Clip, cut_windows, dropped_span, make_buckets
from pipeline.config import BuildConfig, parse_bucket
from pipeline.decode.decoder import Crop, Probe
from pipeline.decode.scan import Scan
from pipeline.flow import flow_speed
from pipeline.shots import find_shots
from pipeline.shots.records import Shot, Transition


def analyse(template: Clip, probe: Probe, scan: Scan, config: BuildConfig) -> Iterator[Clip]:
    """The rows of a file that was scanned; `template` carries what they share (source, URI)."""
    pieces = find_shots(
        scan.pts, scan.frames, probe.time_base, config.shots, breaks=scan.after_damage.tolist()
    )
    for piece in pieces:
        greys = scan.greys[slice(*np.searchsorted(scan.grey_pts, (piece.start_pts, piece.end_pts)))]
        bars, content = None, (0, 0, probe.width, probe.height)
        if len(greys):
            cells = content_cells(greys)
            bars = bars_share(cells, greys.shape[1:])
            content = content_pixels(cells, greys.shape[1:], (probe.width, probe.height))
        within = content if config.clips.crop_bars else None
        for clip in _clips(replace(template, content=content), probe, piece, config, within):
            yield _measured(clip, probe, scan, piece.start_pts, bars)


def _clips(
    template: Clip,
    probe: Probe,
    piece: Shot | Transition,
    config: BuildConfig,
    within: Crop | None,
) -> Iterator[Clip]:
    span, fps = (piece.start_pts, piece.end_pts), config.clips.fps
    seconds = (span[1] - span[0]) * probe.time_base[0] / probe.time_base[1]
    if isinstance(piece, Transition):
        yield dropped_span(template, probe, *span, fps, piece.kind)
    elif probe.kind == "video" and seconds < config.shots.shortest_seconds:
        yield dropped_span(template, probe, *span, fps, "too_short")
    else:
        buckets = make_buckets(parse_bucket(text) for text in config.clips.buckets)
        yield from cut_windows(template, probe, *span, fps, buckets, within)


def _measured(
    clip: Clip, probe: Probe, scan: Scan, shot_start_pts: int, bars: float | None
) -> Clip:
    """The clip with its place in seconds, its scores and its picture hash."""
    second = probe.time_base[1] / probe.time_base[0]
    shown = _on_display(scan.pts, clip.start_pts, clip.end_pts)
    frames = scan.frames[shown]
    greys = _on_display(scan.grey_pts, clip.start_pts, clip.end_pts)
    if len(scan.grey_pts) and scan.grey_pts[greys.start] < shot_start_pts:  # of another take
        greys = slice(greys.start + 1, greys.stop)
    grey_seconds = (scan.grey_pts[greys] - scan.pts[0]) / second
    values = scores.score_frames(frames, (scan.pts[shown] - scan.pts[0]) / second)
    values["flow"] = flow_speed(scan.greys[greys], grey_seconds, probe.width / probe.height)
    values["black_bars"] = bars
    return replace(
        clip,
        start_seconds=round(float((clip.start_pts - scan.pts[0]) / second), 6),
        end_seconds=round(float((clip.end_pts - scan.pts[0]) / second), 6),
        scores={name: _rounded(value) for name, value in values.items()},
        picture_hash=picture_hash.picture_hash(frames),
    )


def _on_display(pts: np.ndarray, start_pts: int, end_pts: int) -> slice:
    """The frames on screen over [start_pts, end_pts); the first may have come before it."""
    first = max(int(np.searchsorted(pts, start_pts, side="right")) - 1, 0)
    return slice(first, max(int(np.searchsorted(pts, end_pts)), first + 1))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
