"""Continuity: whether the picture goes on across what looks like a cut.

After a flash, or a damaged frame, it is back. After a jerk of the camera, or where frames are
missing, it is the same picture moved: of the same colours, and alike when shifted into place.
"""

from __future__ import annotations

import numpy as np

from pipeline.shots.blocks import block_means

_FLASH_SECONDS = 0.25
_MAX_FRAMES = 16  # on each side, whatever the frame rate
_BACK = 0.6  # share of the change up to which a later picture is the earlier one again
_MAX_COLOUR_CHANGE = 0.2  # share of the pixels that change their colour, of 64 colours
_MIN_LIKENESS = 0.6  # correlation of luma when shifted into place
_MAX_SHIFT = (4, 8)  # rows, columns of 18 x 32
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def goes_on(frames: np.ndarray, seconds: np.ndarray, cut: int) -> bool:
    """Whether one take holds frame `cut` - 1 and frame `cut`.

    `frames` is uint8 (n, 36, 64, 3) RGB, shown from `seconds` (n,) on.
    """
    return _comes_back(frames, seconds, cut) or _is_moved(frames[cut - 1], frames[cut])


def _comes_back(frames: np.ndarray, seconds: np.ndarray, cut: int) -> bool:
    first = int(np.searchsorted(seconds, seconds[cut] - _FLASH_SECONDS - 1e-6))
    last = int(np.searchsorted(seconds, seconds[cut - 1] + _FLASH_SECONDS + 1e-6, side="right"))
    first, last = max(min(first, cut - 1), cut - _MAX_FRAMES), min(last, cut + _MAX_FRAMES)
    blocks = block_means(frames[first : max(last, cut + 1)]).astype(np.float64)
    before, behind = blocks[: cut - first], blocks[cut - first :]
    squares = np.square(before).sum(axis=1)[:, None] + np.square(behind).sum(axis=1)
    apart = np.maximum(squares - 2 * before @ behind.T, 0)
    return bool(apart.min() < _BACK**2 * apart[-1, 0])


def _is_moved(before: np.ndarray, behind: np.ndarray) -> bool:
    histograms = [
        np.bincount(((each >> 6) @ np.array([16, 4, 1], np.uint8)).ravel(), minlength=64)
        for each in (before, behind)
    ]
    changed = np.abs(histograms[0] - histograms[1]).sum() / histograms[0].sum() / 2
    return bool(changed < _MAX_COLOUR_CHANGE) and _shifted_likeness(before, behind) > _MIN_LIKENESS


def _shifted_likeness(before: np.ndarray, behind: np.ndarray) -> float:
    """The highest correlation of the two lumas over all shifts of one against the other."""
    one, two = ((each @ _LUMA).reshape(18, 2, 32, 2).mean(axis=(1, 3)) for each in (before, behind))
    best = -1.0
    rows, columns = one.shape
    for down in range(-_MAX_SHIFT[0], _MAX_SHIFT[0] + 1):
        for right in range(-_MAX_SHIFT[1], _MAX_SHIFT[1] + 1):
            a = one[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)]
            b = two[max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
            a, b = a - a.mean(), b - b.mean()
            likeness = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1))
            best = max(best, likeness)
    return best
