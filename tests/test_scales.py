"""Schedules: counts, order, validation, and their plain form."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.scales import (
    PRESETS,
    Scale,
    Schedule,
    image_and_clip,
    preset_schedule,
    preset_sides,
    single_grid,
)
from tokenizer.settings import UserError


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
    schedule = image_and_clip(3, sizes=(1, 4), clip_sizes=((1, 2), (2, 4), 4))
    assert [scale.shape for scale in schedule.scales] == [
        (1, 1, 1),
        (1, 4, 4),
        (2, 1, 2),
        (2, 2, 4),
        (2, 4, 4),
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


def test_a_scale_smaller_than_the_one_before_it_is_refused():
    with pytest.raises(ValueError, match=r"1 x 2 x 4 follows the larger 1 x 3 x 3: .* grow"):
        image_and_clip(1, ((1, 1), (3, 3), (2, 4)))
    assert image_and_clip(1, (1, 2, 2, 4)).num_tokens == 25  # a size may be repeated


def test_a_scale_has_no_more_code_frames_than_latent_frames():
    with pytest.raises(ValueError, match=r"scale \[0, 2\) has 3 code frames over 2 latent frames"):
        Schedule((Scale(0, 2, 3, 4, 4),))


def test_all_pyramids_end_at_the_latent_grid():
    with pytest.raises(ValueError, match="ends at 4 x 4 and the last one at 2 x 4: all must end"):
        image_and_clip(3, sizes=(1, 4), clip_sizes=((1, 2), (2, 4)))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((4, 4, 4), "the schedule is for 3 latent frames, there are 4"),
        ((3, 2, 4), r"finest scale \(4 x 4\) is larger than the latent grid \(2 x 4\)"),
        ((3, 8, 8), r"finest scale \(4 x 4\) is smaller than the latent grid \(8 x 8\)"),
    ],
)
def test_latents_of_another_grid_are_refused(grid, message):
    schedule = image_and_clip(3, (1, 2, 4))
    schedule.check_grid(3, 4, 4)
    with pytest.raises(UserError, match=message) as error:
        schedule.check_grid(*grid)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "num_scales", "num_tokens"),
    [
        ("var-256", 10, 680),
        ("var-512", 10, 2240),
        ("var-1024", 14, 9451),
        ("infinity-256", 7, 521),
        ("infinity-512", 10, 2521),
        ("infinity-1024", 13, 10521),
        ("infinitystar-256", 11, 704),
    ],
)
def test_presets_have_the_published_numbers_of_codes(name, num_scales, num_tokens):
    schedule = preset_schedule(name)
    assert (len(schedule.scales), schedule.num_tokens) == (num_scales, num_tokens)


def test_five_seconds_at_480p_are_an_image_and_one_clip_of_the_published_scales():
    schedule = preset_schedule("infinitystar-480p", num_latent_frames=21, ratio=9 / 16)
    image, clip = schedule.pyramids
    assert [scale.shape[1:] for scale in image] == [
        (1, 1), (2, 3), (2, 4), (3, 5), (4, 7), (4, 8), (5, 9), (6, 11), (8, 13), (9, 16),
        (12, 21), (18, 32), (24, 43), (30, 53),
    ]  # fmt: skip
    assert sum(scale.num_tokens for scale in image) == 3899
    assert sum(scale.num_tokens for scale in clip) == 77_980
    assert {scale.t for scale in clip} == {20}
    spans = [(p[0].t0, p[0].t1) for p in preset_schedule("infinitystar-480p", 31).pyramids]
    assert spans == [(0, 1), (1, 21), (21, 31)]


def test_infinity_has_tables_for_its_ratios_and_their_transposes():
    assert preset_sides("infinity-256", 1.75)[-1] == (21, 12)
    tall, wide = preset_sides("infinity-1024", 3), preset_sides("infinity-1024", 1 / 3)
    assert wide == tuple((w, h) for h, w in tall)
    assert preset_sides("infinity-512", 4 / 3)[-1] == (36, 27)
    with pytest.raises(UserError, match=r"ratio \(0.9\) has no scales in infinity-256"):
        preset_sides("infinity-256", 0.9)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("ratio", [1, 0.5, 2])
def test_every_preset_is_a_schedule_at_other_ratios_and_for_video(name, ratio):
    schedule = preset_schedule(name, 3, ratio)
    first = schedule.scales[: len(PRESETS[name].sides)]
    assert schedule.num_latent_frames == 3
    assert first[-1].h / first[-1].w == pytest.approx(ratio, rel=0.1)


def test_an_unknown_preset_or_ratio_is_refused():
    with pytest.raises(UserError, match="unknown schedule 'var-128'; there are var-256, var-512"):
        preset_sides("var-128")
    with pytest.raises(UserError, match=r"ratio \(0\) is height / width"):
        preset_sides("var-256", 0)
