"""Bars: black borders around a picture, above and below or left and right.

Bars are black in every frame of a take, about equally thick on opposite sides, and end in a
straight line behind which most of the picture is not black. A dark scene has no such line, so
nothing of it is ever taken for a bar; a bar with subtitles in it is not taken for one either.
"""

from __future__ import annotations

import numpy as np

_BLACK = 24  # levels that coding leaves in black
_VISIBLE = 40
_MIN_EDGE = 0.6  # share of the line behind a bar that is visible at some time
_MAX_UNEVEN = 2  # cells by which opposite bars may differ
_MIN_CONTENT = 0.25  # share of the height or width that is left between bars


def content_cells(greys: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what lies between the bars, half-open, in cells of the frames.

    `greys` is uint8 (n, rows, columns), n >= 1, the frames of one take.
    """
    peak = greys.max(axis=0)
    top, bottom = _between(peak)
    left, right = _between(peak[top:bottom].T)
    top, bottom = _between(peak[:, left:right])  # again: bars at the sides hide those above
    return left, top, right, bottom


def bars_share(content: tuple[int, int, int, int], shape: tuple[int, int]) -> float:
    """Share of the picture that is bars, 0 to 1; `shape` is (rows, columns) of the frames."""
    left, top, right, bottom = content
    rows, columns = shape
    return 1 - (right - left) * (bottom - top) / (rows * columns)


def content_pixels(
    content: tuple[int, int, int, int], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the content in a picture of `size` (width, height); none is lost."""
    left, top, right, bottom = content
    (rows, columns), (width, height) = shape, size
    x, y = left * width // columns, top * height // rows
    return x, y, -(-right * width // columns) - x, -(-bottom * height // rows) - y


def _between(peak: np.ndarray) -> tuple[int, int]:
    """(first, end) line of the content of (lines, cells); all lines where there are no bars."""
    lines = len(peak)
    visible = np.flatnonzero((peak > _BLACK).any(axis=1))
    if not len(visible):
        return 0, lines
    first, end = int(visible[0]), int(visible[-1]) + 1
    is_pair = first > 0 and end < lines and abs(first - (lines - end)) <= _MAX_UNEVEN
    if not is_pair or end - first < _MIN_CONTENT * lines:
        return 0, lines
    # the line at the very edge may be half bar, half picture
    for edge in (peak[first : first + 2], peak[end - 2 : end]):
        if (edge.max(axis=0) > _VISIBLE).mean() < _MIN_EDGE:
            return 0, lines
    return first, end
