"""Known pixels, the cells that follow from them, and what is painted over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.scales import Schedule, image_and_clip, single_grid
from tokenizer.settings import UserError
from training.edit_config import EditConfig
from training.known_region import known_cells, known_pixels, made_pixels, painted_over

SHAPE = (9, 16, 24)
SCHEDULES = [image_and_clip(3, [(1, 1), (2, 3), (4, 6)]), image_and_clip(3, [(4, 6)])]


def pixels(num_there: int = 9, mask: Any = None, **changes: Any) -> np.ndarray:
    return known_pixels(EditConfig(**changes), SHAPE, num_there, 4, mask)


def test_a_rectangle_is_made_or_kept_in_every_frame() -> None:
    hidden = pixels(hide=(4, 8, 8, 16))
    assert not hidden[:, 4:8, 8:16].any()
    assert hidden.sum() == 9 * (16 * 24 - 4 * 8)
    assert (pixels(keep=(4, 8, 8, 16)) == ~hidden).all()
    assert (pixels(mask=~hidden[0]) == hidden).all()


def test_first_frames_are_kept_and_with_a_region_what_lies_around_it_later() -> None:
    assert pixels(first_frames=5).all(axis=(1, 2)).tolist() == [True] * 5 + [False] * 4
    both = pixels(first_frames=5, hide=(0, 0, 16, 12))
    assert both[:5].all()
    assert both[5:, :, 12:].all()
    assert not both[5:, :, :12].any()


def test_frames_that_the_source_has_not_are_made() -> None:
    assert pixels(num_there=1).all(axis=(1, 2)).tolist() == [True] + [False] * 8
    assert not pixels(num_there=1, hide=(0, 0, 4, 4))[1:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hide": (0, 0, 17, 8)}, "inside the clip, which has 16 x 24"),
        ({"keep": (0, 0, 8, 25)}, "right at most 24"),
        ({"first_frames": 4}, "nearest are 1 and 5"),
        ({"first_frames": 10}, r"must lie in \[1, 9\]"),
        ({}, "the whole clip would be kept"),
    ],
)
def test_regions_outside_of_the_clip_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pixels(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"hide": (0, 0, 0, 4)}, {"hide": (0, 0, 1, 1), "mask": "m.png"}, {"keep": (4, 0, 2, 1)}],
)
def test_rectangles_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hide|keep|only one of"):
        EditConfig(**changes)


@given(seed=st.integers(0, 1000), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=20, deadline=None)
def test_a_cell_is_known_when_all_of_its_pixels_are(seed: int, schedule: Schedule) -> None:
    random = np.random.default_rng(seed)
    known = random.random((9, 4, 6)) < 0.9
    known = known.repeat(4, axis=1).repeat(4, axis=2)
    cells = known_cells(schedule, known, 4)
    starts = [0, 1, 5, 9]
    for cell, (index, at) in enumerate(zip(schedule.scale_of_token, schedule.coordinates)):
        scale = schedule.scales[index]
        frames = known[starts[scale.t0 + at[0]] : starts[scale.t0 + at[0] + 1]]
        if scale.t != scale.t1 - scale.t0:
            frames = known[starts[scale.t0] : starts[scale.t1]]
        size = 16 // scale.h, 24 // scale.w
        rows = slice(at[1] * size[0], (at[1] + 1) * size[0])
        columns = slice(at[2] * size[1], (at[2] + 1) * size[1])
        assert cells[cell] == frames[:, rows, columns].all()
    made = made_pixels(schedule, cells, SHAPE, 4)
    assert made[~known].all()


def test_footprints_that_end_inside_a_pixel_count_it_whole() -> None:
    known = np.ones((1, 10, 10), dtype=bool)
    known[0, 3] = False
    cells = known_cells(single_grid(1, 3, 1), known, 4)
    assert cells.tolist() == [False, False, True]


def test_what_is_painted_over_is_not_looked_at_and_what_is_known_stays() -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    known = pixels(first_frames=5, hide=(0, 0, 16, 11))
    known[7:] = False
    found = painted_over(frames, known)
    assert (found[known] == frames[known]).all()
    other = np.where(known[..., None], frames, 255 - frames)
    assert (painted_over(other, known) == found).all()
    assert (found[8] == found[6]).all()
    plain = np.full_like(frames, 77)
    assert (painted_over(plain, known) == 77).all()
    assert (painted_over(plain, np.zeros_like(known)) == 128).all()
