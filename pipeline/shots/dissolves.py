"""Dissolves: one picture mixed into another, frame by frame.

If frames between A and B are mixtures of the two, their way from A to B, each frame a point, is a
straight line, and half way the contrast dips: mixing pictures that are unlike cancels them.
Movement bends the way, and dips nothing. Windows of many lengths are asked both things on coarse
frames, by a few inner products; those that pass are asked again on the frames themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.shots.settings import ShotSettings

_MAX_WINDOW_FRAMES = 128
_MIN_QUARTER = 2  # frames in a quarter of the shortest window
_GROWTH = 1.3  # from one length of window to the next
_MIN_STRAIGHT = 0.45  # distance from A to B over the length of the way by quarters
_MAX_STEP = 0.5  # share of the distance that one frame may make; more is a cut
_MAX_LIKENESS = 0.55  # correlation of A and B; the same picture brighter or darker is no dissolve
_DIP = (-0.2, 0.13)  # contrast half way against that of a mixture, as a share of the mean contrast
_COARSE_DIP = (-0.2, 0.16)
_MAX_ASIDE = 0.55  # how far a mixture may lie off the line, as a share of the distance
_FLAT = 25.0  # squared levels: pictures with less contrast correlate by chance
_MAX_REFUSALS = 8  # windows about a frame that are looked at closely in vain
_RAMP = (0.15, 0.85)  # shares of B between which the mixing is measured


class _Windows(NamedTuple):
    """Windows [start, start + length], each (m,): how far they lead from A towards B, and where."""

    progress: np.ndarray
    start: np.ndarray
    length: np.ndarray


def find_dissolves(
    frames: np.ndarray,
    blocks: np.ndarray,
    seconds: np.ndarray,
    excluded: Sequence[tuple[int, int]],
    settings: ShotSettings,
) -> list[tuple[int, int]]:
    """Half-open spans of the frames that are mixtures, in order, apart from the `excluded` spans.

    `frames` is uint8 (n, h, w, 3), `blocks` float32 (n, d) the same coarser, `seconds` (n,).
    """
    centred = blocks - blocks.mean(axis=1, keepdims=True)
    taken = np.zeros(len(frames) + 1, bool)
    for start, end in excluded:
        taken[max(start - 1, 0) : end + 1] = True
    refusals = np.zeros(len(frames), np.uint8)  # of windows about this frame
    found = []
    windows = _windows(centred, seconds, settings)
    for index in np.argsort(-windows.progress, kind="stable"):
        start, length = int(windows.start[index]), int(windows.length[index])
        middle = start + length // 2
        if taken[start : start + length].any() or refusals[middle] >= _MAX_REFUSALS:
            continue
        span = _mixed_frames(centred, start, length)
        if span is not None and not taken[slice(*span)].any() and _is_mixture(frames, *span):
            taken[slice(*span)] = True
            found.append(span)
        else:
            refusals[middle - length // 8 : middle + length // 8 + 1] += 1
    return sorted(found)


def _windows(centred: np.ndarray, seconds: np.ndarray, settings: ShotSettings) -> _Windows:
    """The windows whose frames could be a dissolve, on coarse frames."""
    num_frames, width = centred.shape
    none = _Windows(np.empty(0), np.empty(0, int), np.empty(0, int))
    if num_frames <= 4 * _MIN_QUARTER:
        return none
    frame_seconds = float(np.median(np.diff(seconds)))
    longest = min(
        settings.max_transition_seconds / max(frame_seconds, 1e-6),
        _MAX_WINDOW_FRAMES,
        num_frames - 1,
    )
    contrast = np.einsum("ij,ij->i", centred, centred) / width
    distances: dict[int, np.ndarray] = {}

    def apart(lag: int) -> np.ndarray:
        """(n - lag,): squared distance of each frame from the one `lag` behind it."""
        if lag not in distances:
            products = np.einsum("ij,ij->i", centred[lag:], centred[:-lag]) / width
            distances[lag] = np.maximum(contrast[lag:] + contrast[:-lag] - 2 * products, 0)
        return distances[lag]

    passing = [none]
    quarter = _MIN_QUARTER
    while 4 * quarter <= longest:
        length = 4 * quarter
        count = num_frames - length
        whole = apart(length)
        way = sum(np.sqrt(apart(quarter)[k * quarter :][:count]) for k in range(4))
        progress = whole / (way + 1e-6)
        one, middle, two = (contrast[k * quarter :][:count] for k in (0, 2, 4))
        product = (one + two - whole) / 2
        dip = (middle - (one + two + 2 * product) / 4) / ((one + two) / 2 + 1e-6)
        step = np.lib.stride_tricks.sliding_window_view(apart(1), length).max(axis=1)[:count]
        passes = progress >= settings.min_dissolve_change
        passes &= progress**2 >= _MIN_STRAIGHT**2 * whole
        passes &= step <= _MAX_STEP**2 * whole
        passes &= product <= _MAX_LIKENESS * np.sqrt(
            np.maximum(one, _FLAT) * np.maximum(two, _FLAT)
        )
        passes &= (dip >= _COARSE_DIP[0]) & (dip <= _COARSE_DIP[1])
        starts = np.flatnonzero(passes)
        passing.append(_Windows(progress[starts], starts, np.full(len(starts), length)))
        quarter = max(quarter + 1, int(quarter * _GROWTH))
    return _Windows(*(np.concatenate(each) for each in zip(*passing)))


def _mixed_frames(centred: np.ndarray, start: int, length: int) -> tuple[int, int] | None:
    """The frames that hold something of both, by a straight line through their shares of B.

    A frame too many on either side is a frame less; a mixed one in a clip would be worse.
    """
    end = start + length
    line = centred[end] - centred[start]
    shares = (centred[start : end + 1] - centred[start]) @ line / (line @ line)
    inside = np.flatnonzero((shares > _RAMP[0]) & (shares < _RAMP[1]))
    if len(inside) < 2:
        return None
    at = np.arange(inside[0], inside[-1] + 1)
    slope, base = np.polyfit(at, shares[at], 1)
    if slope <= 0:
        return None
    first = start + max(int(np.ceil(-base / slope - 0.3)), 0)
    last = start + min(int(np.floor((1 - base) / slope + 0.3)), length)
    return first, last + 1


def _is_mixture(frames: np.ndarray, start: int, end: int) -> bool:
    """Whether frames [start, end) are mixtures of those beside them, pixel by pixel."""
    before, behind = max(start - 1, 0), min(end, len(frames) - 1)
    if behind - before < 2:
        return False
    chosen = np.round(np.linspace(before, behind, 5)).astype(int)
    pixels = frames[chosen].reshape(5, -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    gram = (pixels @ pixels.T).astype(float) / pixels.shape[1]
    one, two, product = gram[0, 0], gram[4, 4], gram[0, 4]
    whole = one + two - 2 * product
    if product > _MAX_LIKENESS * np.sqrt(max(one, _FLAT) * max(two, _FLAT)):
        return False
    dip = (gram[2, 2] - (one + two + 2 * product) / 4) / ((one + two) / 2)
    if not _DIP[0] <= dip <= _DIP[1]:
        return False
    steps = [gram[k, k] + gram[k + 1, k + 1] - 2 * gram[k, k + 1] for k in range(4)]
    if whole < (_MIN_STRAIGHT * np.sqrt(np.maximum(steps, 0)).sum()) ** 2:
        return False
    for k in (1, 2, 3):
        from_one = gram[k, k] + one - 2 * gram[k, 0]
        along = (gram[k, 4] - gram[k, 0] - product + one) / whole
        if from_one - along**2 * whole > _MAX_ASIDE**2 * whole:
            return False
    return True
