"""Fades: a picture that comes out of black or white, or goes into it.

In a fade every pixel approaches black (or white) by the same factor, so the distance of the whole
frame from black falls in a straight line to nothing. One number a frame is enough to find it, and
movement in the picture hardly disturbs that number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_FLOOR = 8.0  # levels from black or white up to which a frame is nothing but that
_LOW = 60.0  # frames further away than this are no end of a fade
_FADED = 0.25  # what may be left of the picture where it is least, if it goes and comes there
_MIN_RISE = 12.0  # levels that a picture is away from black or white at least
_MAX_STEP = 0.5  # share of the way that one frame may make; more is a cut
_BEND = 3.0  # how much a level of deviation from the straight line counts against one of rise
_MIN_LIKENESS = 0.8  # cosine between the faded picture and the whole one: the same, dimmed
_MIN_FRAMES = 3
_MAX_HOLD_SECONDS = 2.0  # black between a picture that goes and one that comes: one transition


def find_fades(
    blocks: np.ndarray, seconds: np.ndarray, max_seconds: float
) -> list[tuple[int, int]]:
    """Half-open spans of the frames in fades, in order, not overlapping.

    `blocks` is float32 (n, d), levels of 0 to 255; `seconds` (n,) growing. Each way of a fade lasts
    `max_seconds` at most.
    """
    found: list[tuple[int, int]] = []
    means = blocks.mean(axis=1, dtype=np.float64)
    squares = np.einsum("ij,ij->i", blocks, blocks) / blocks.shape[1]
    for level in (0.0, 255.0):
        away = np.sqrt(np.maximum(squares - 2 * level * means + level**2, 0))
        for first, last in _floors(away):
            left = _picture_end(blocks, away, seconds, first, -1, level, max_seconds)
            right = _picture_end(blocks, away, seconds, last, +1, level, max_seconds)
            if away[first : last + 1].min() > _FLOOR and (left is None or right is None):
                continue
            if (
                left is not None
                and right is not None
                and seconds[last] - seconds[first] <= _MAX_HOLD_SECONDS
            ):
                found.append((left + 1, right))
                continue
            if left is not None and left + 1 < first:
                found.append((left + 1, first))
            if right is not None and last + 1 < right:
                found.append((last + 1, right))
    return _disjoint(found, len(blocks))


def _floors(away: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) frame of each stretch that is black, or else as near to it as it gets."""
    for start, end in _runs(away <= _LOW):
        black = [(start + first, start + last) for first, last in _runs(away[start:end] <= _FLOOR)]
        for first, last in black or [(start, end)]:
            stretch = away[first:last]
            lowest = np.flatnonzero(stretch <= stretch.min() + 3)
            yield int(first + lowest[0]), int(first + lowest[-1])


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """Half-open spans of what is True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2])]


def _picture_end(
    blocks: np.ndarray,
    away: np.ndarray,
    seconds: np.ndarray,
    floor: int,
    direction: int,
    level: float,
    max_seconds: float,
) -> int | None:
    """The nearest frame whole again, going from the frame `floor` in `direction`; None: no fade.

    It ends the straightest long rise of the distance `away` from the level.
    """
    near = slice(floor, None) if direction > 0 else slice(floor, None, -1)
    elapsed = np.abs(seconds[near] - seconds[floor])
    count = int(np.searchsorted(elapsed, max_seconds, side="right"))
    rise = away[near][:count] - away[floor]
    if count <= _MIN_FRAMES or rise.max() < _MIN_RISE:
        return None
    steps = np.arange(count)
    best, best_score = 0, 0.0
    for end in np.flatnonzero(rise >= _MIN_RISE):
        if end < _MIN_FRAMES:
            continue
        bend = np.abs(rise[: end + 1] - rise[end] / end * steps[: end + 1]).max()
        score = float(rise[end] - _BEND * bend)
        if score > best_score:
            best, best_score = int(end), score
    if not best or away[floor] > _FADED * (rise[best] + away[floor]):
        return None
    way = rise[: best + 1]
    if np.abs(np.diff(way)).max() > _MAX_STEP * way[-1]:
        return None
    middle = int(np.argmin(np.abs(way - way[-1] / 2)))
    dimmed, whole = (blocks[floor + direction * step] - level for step in (middle, best))
    likeness = dimmed @ whole / np.sqrt((dimmed @ dimmed) * (whole @ whole))
    return floor + direction * best if likeness >= _MIN_LIKENESS else None


def _disjoint(spans: list[tuple[int, int]], num_frames: int) -> list[tuple[int, int]]:
    """In order; of spans that overlap the longest."""
    taken = np.zeros(num_frames, bool)
    result: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        if end - start >= 2 and not taken[start:end].any():
            taken[start:end] = True
            result.append((start, end))
    return sorted(result)
