"""Schedules: counts, order, validation, and their plain form."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.scales import Scale, Schedule, image_and_clip, single_grid


def test_the_demo_schedule_has_21_codes_for_frame_0_and_42_for_the_clip():
    schedule = image_and_clip(3, sizes=(1, 2, 4))
    assert schedule.num_tokens == 63
    assert [scale.num_tokens for scale in schedule.scales] == [1, 4, 16, 2, 8, 32]
    assert schedule.offsets == (0, 1, 5, 21, 23, 31, 63)
    assert [len(pyramid) for pyramid in schedule.pyramids] == [3, 3]


def test_one_latent_frame_gives_an_image_schedule_like_that_of_var():
    schedule = image_and_clip(1, sizes=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert schedule.num_tokens == 680
    assert schedule.num_latent_frames == 1


def test_a_long_clip_is_cut_into_pyramids_whose_last_may_be_shorter():
    schedule = image_and_clip(6, sizes=(1, 2), clip_latent_frames=2)
    spans = [(pyramid[0].t0, pyramid[0].t1) for pyramid in schedule.pyramids]
    assert spans == [(0, 1), (1, 3), (3, 5), (5, 6)]
    assert schedule.scales[-1].shape == (1, 2, 2)


def test_clip_pyramids_may_have_other_sizes_than_the_image():
    schedule = image_and_clip(3, sizes=(1, 4), clip_sizes=((1, 2), (2, 4)))
    assert [scale.shape for scale in schedule.scales] == [
        (1, 1, 1),
        (1, 4, 4),
        (2, 1, 2),
        (2, 2, 4),
    ]


def test_a_single_grid_is_one_pyramid_of_one_scale():
    schedule = single_grid(2, 3, 4)
    assert schedule.scales == (Scale(0, 2, 2, 3, 4),)
    assert schedule.num_tokens == 24


def test_each_code_knows_its_scale_and_its_place_in_it():
    schedule = image_and_clip(3, sizes=(1, 2))
    assert schedule.scale_of_token.tolist() == [0] + [1] * 4 + [2] * 2 + [3] * 8
    np.testing.assert_array_equal(schedule.coordinates[5:7], [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(schedule.coordinates[8], [0, 0, 1])


def test_split_keeps_every_code_and_its_order():
    schedule = image_and_clip(3, sizes=(1, 2, 4))
    codes = np.arange(2 * 63).reshape(2, 63)
    parts = schedule.split(codes)
    assert [part.shape for part in parts][3:5] == [(2, 2, 1, 1), (2, 2, 2, 2)]
    np.testing.assert_array_equal(np.concatenate([p.reshape(2, -1) for p in parts], 1), codes)


def test_codes_of_another_length_are_refused():
    with pytest.raises(ValueError, match="62 codes do not fit a schedule of 63"):
        image_and_clip(3, sizes=(1, 2, 4)).split(np.zeros((1, 62)))


def test_a_schedule_survives_json():
    schedule = image_and_clip(5, sizes=(1, (2, 3)), clip_latent_frames=3)
    assert Schedule.from_list(schedule.to_list()) == schedule


@pytest.mark.parametrize(
    "rows", [[[0, 1, 1, 1]], [[0, 1, 1, 1, 1.0]], [[1, 2, 1, 1, 1]], [[0, 1, 2, 1, 1]], []]
)
def test_what_is_no_schedule_is_refused(rows):
    with pytest.raises(ValueError, match=r"scale|pyramid|schedule"):
        Schedule.from_list(rows)


def test_pyramids_must_follow_each_other_without_gap():
    with pytest.raises(ValueError, match="starts at latent frame 2, not 1"):
        Schedule((Scale(0, 1, 1, 1, 1), Scale(2, 3, 1, 1, 1)))
