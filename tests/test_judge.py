"""The judge: it learns what clips show and which way they move, and is the same once saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.evaluate_config import JudgeConfig
from training.judge import (
    Judge,
    agreement,
    attribute_values,
    joint_agreement,
    judge_key,
    load_judge,
    save_judge,
    seen,
    train_judge,
)

FEW_STEPS = JudgeConfig(num_steps=60, batch_size=16, learning_rate=1e-2)


def bars(num_clips: int, seed: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Five frames of a red or green bar that stands upright or lies, and moves left or right."""
    random = np.random.default_rng(seed)
    clips, attributes = [], []
    for index in range(num_clips):
        frames = np.full((5, 32, 32, 3), 16, dtype=np.uint8)
        motion, color = ("left", "right")[index % 2], ("red", "green")[index // 2 % 2]
        start, top = random.integers(10, 18, 2)
        for time in range(5):
            left = start + (time - 2) * (2 if motion == "right" else -2)
            frames[time, top - 6 : top + 6, left : left + 5, ("red", "green").index(color)] = 230
        clips.append(frames)
        attributes.append({"motion": motion, "color": color, "set": "bars"})
    return np.stack(clips), attributes


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(*bars(64, seed=0), FEW_STEPS)


def test_a_judge_recognises_motion_and_color_of_new_clips(judge: Judge) -> None:
    frames, attributes = bars(40, seed=1)
    accuracy = agreement(judge.predict(frames), attributes)
    assert accuracy["motion"] > 0.9
    assert accuracy["color"] > 0.9


def test_a_clip_played_backwards_moves_the_other_way(judge: Judge) -> None:
    frames, attributes = bars(40, seed=2)
    accuracy = agreement(judge.predict(frames[:, ::-1]), attributes)
    assert accuracy["motion"] < 0.1
    assert accuracy["color"] > 0.9


def test_a_mirrored_clip_moves_the_other_way(judge: Judge) -> None:
    frames, attributes = bars(40, seed=2)
    assert agreement(judge.predict(frames[:, :, :, ::-1]), attributes)["motion"] < 0.1


def test_an_attribute_with_one_value_has_no_head(judge: Judge) -> None:
    assert judge.values == {"color": ("green", "red"), "motion": ("left", "right")}
    assert attribute_values([{"class": "1"}, {"class": "1"}]) == {}


def test_clips_without_labels_cannot_train_a_judge() -> None:
    frames, _ = bars(4, seed=0)
    with pytest.raises(ValueError, match="at least two values"):
        train_judge(frames, [{}] * 4, FEW_STEPS)


def test_an_attribute_that_some_clips_lack_is_learned_from_the_others() -> None:
    frames, attributes = bars(64, seed=0)
    partly = [
        each if index % 4 < 2 else {"motion": each["motion"]}
        for index, each in enumerate(attributes)
    ]
    partly[2] = attributes[2]
    judge = train_judge(frames, partly, JudgeConfig(num_steps=5, batch_size=16))
    assert set(judge.values) == {"motion", "color"}
    assert all(torch.isfinite(each).all() for each in judge.parameters())


def test_training_is_a_function_of_clips_and_settings() -> None:
    frames, attributes = bars(16, seed=0)
    settings = JudgeConfig(num_steps=3, batch_size=8)
    state = torch.get_rng_state()
    first = train_judge(frames, attributes, settings)
    torch.manual_seed(99)
    second = train_judge(frames, attributes, settings)
    torch.set_rng_state(state)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)


def test_a_saved_judge_judges_the_same_and_only_for_its_clips(judge: Judge, tmp_path: Path) -> None:
    frames, _ = bars(8, seed=3)
    key = judge_key("dataset", 64, FEW_STEPS)
    save_judge(judge, tmp_path, key)
    loaded = load_judge(tmp_path, key)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.look(frames)[0], judge.look(frames)[0])
    assert loaded.predict(frames) == judge.predict(frames)
    assert load_judge(tmp_path, judge_key("another", 64, FEW_STEPS)) is None
    assert load_judge(tmp_path / "nowhere", key) is None


def test_features_do_not_depend_on_the_batch(judge: Judge) -> None:
    frames, _ = bars(10, seed=4)
    np.testing.assert_allclose(
        judge.look(frames, batch_size=3)[0], judge.look(frames)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 64, 64), (9, 64, 96), (5, 16, 16)])
def test_clips_of_any_shape_can_be_judged(judge: Judge, shape: tuple[int, int, int]) -> None:
    frames = np.zeros((2, *shape, 3), dtype=np.uint8)
    assert len(judge.predict(frames)["color"]) == 2


def test_frames_are_seen_at_32_pixels_by_their_averages() -> None:
    frames = np.zeros((1, 1, 64, 64, 3), dtype=np.uint8)
    frames[0, 0, 0, 0] = 255
    clip = seen(frames)
    assert clip.shape == (1, 3, 1, 32, 32)
    assert clip[0, 0, 0, 0, 0].item() == pytest.approx(255 / 4 / 127.5 - 1, abs=1e-6)
    assert clip[0, 0, 0, 5, 5].item() == -1


def test_agreement_counts_only_what_is_intended() -> None:
    predicted = {"class": ["1", "2", "3"], "motion": ["up", "up", "up"]}
    intended = [{"class": "1", "motion": "down"}, {"class": "3"}, {"class": "3"}]
    assert agreement(predicted, intended) == {"class": pytest.approx(2 / 3), "motion": 0}


def test_joint_agreement_asks_for_everything_that_a_clip_states_at_once() -> None:
    predicted = {"class": ["1", "2", "3", "4"], "motion": ["up", "up", "up", "up"]}
    intended = [
        {"class": "1", "motion": "up"},
        {"class": "2", "motion": "down"},
        {"class": "3"},
        {},
    ]
    assert joint_agreement(predicted, intended, {"class", "motion"}) == pytest.approx(2 / 3)
    assert joint_agreement(predicted, intended, {"class", "color"}) == 1
    assert joint_agreement(predicted, intended, {"color"}) is None


@pytest.mark.slow
def test_held_out_digits_are_judged_right() -> None:
    from pipeline.digits import render_clips

    frames, attributes = zip(*render_clips(1200, seed=0, fps=8, num_frames=9))
    clips = np.stack(frames)
    judge = train_judge(clips[:1080], attributes[:1080], JudgeConfig())
    accuracy = agreement(judge.predict(clips[1080:]), attributes[1080:])
    assert accuracy["class"] > 0.9
    assert accuracy["motion"] > 0.95
    assert accuracy["color"] > 0.95
