"""Bars: found where they are certain; nothing dark is ever taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bars import bars_share, content_cells, content_pixels

WHOLE = (0, 0, 128, 72)


def take(seed: int = 0, count: int = 5, low: int = 30, high: int = 230) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(low, high, (count, 72, 128), dtype=np.uint8)


@given(top=st.integers(1, 20), uneven=st.integers(-2, 2), noise=st.integers(1, 12))
@settings(max_examples=25)
def test_bars_above_and_below_are_found_to_the_line(top: int, uneven: int, noise: int) -> None:
    greys, below = take(), max(top + uneven, 1)
    bars = np.random.default_rng(1).integers(0, noise, greys.shape, dtype=np.uint8)
    greys[:, :top], greys[:, 72 - below :] = bars[:, :top], bars[:, 72 - below :]
    assert content_cells(greys) == (0, top, 128, 72 - below)


def test_bars_left_and_right_and_all_around_are_found() -> None:
    greys = take()
    greys[:, :, :40] = greys[:, :, 88:] = 3
    assert content_cells(greys) == (40, 0, 88, 72)
    greys[:, :9] = greys[:, 64:] = 3
    assert content_cells(greys) == (40, 9, 88, 64)
    assert bars_share((40, 9, 88, 64), (72, 128)) == pytest.approx(1 - 48 * 55 / (72 * 128))


def test_a_line_that_is_half_bar_half_picture_is_left_to_the_picture() -> None:
    greys = take()
    greys[:, :9] = greys[:, 63:] = 2
    greys[:, 9] = greys[:, 62] = 30  # above black, and too dark to be an edge of its own
    assert content_cells(greys) == (0, 9, 128, 63)


@pytest.mark.parametrize("level", [0, 10, 20, 35])
def test_a_dark_scene_keeps_all_of_itself(level: int) -> None:
    greys = take(high=40) // 40 * 0 + np.uint8(level)
    assert content_cells(greys) == WHOLE
    greys[:, 20:50, 40:80] = 200  # a lit window in the night
    assert content_cells(greys) == WHOLE
    rows, columns = np.mgrid[:72, :128]
    moon = (rows - 36) ** 2 + (columns - 64) ** 2 < 900
    greys[:, moon] = 220
    assert content_cells(greys) == WHOLE


def test_a_bar_on_one_side_only_is_none() -> None:
    greys = take()
    greys[:, 60:] = 0  # a table top, or a crawl that was cut off
    assert content_cells(greys) == WHOLE


def test_what_is_lit_for_a_moment_is_no_bar() -> None:
    greys = take(count=40)
    greys[:, :8] = greys[:, 64:] = 0
    greys[17, 2:6, 30:34] = 200
    left, _, right, bottom = content_cells(greys)
    assert (left, right, bottom) == (0, 128, 72)


def test_black_frames_between_do_not_hide_bars() -> None:
    greys = take(count=20)
    greys[:, :8] = greys[:, 64:] = 0
    greys[5:12] = 0
    assert content_cells(greys) == (0, 8, 128, 64)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 20), st.integers(0, 20))
def test_pixels_of_the_content_lose_nothing(width: int, height: int, side: int, top: int) -> None:
    cells = (side, top, 128 - side, 72 - top)
    x, y, w, h = content_pixels(cells, (72, 128), (width, height))
    assert x <= side * width / 128
    assert x + w >= (128 - side) * width / 128
    assert y <= top * height / 72
    assert y + h >= (72 - top) * height / 72
    assert x >= 0
    assert x + w <= width
    assert y >= 0
    assert y + h <= height
    assert w >= 1
    assert h >= 1
