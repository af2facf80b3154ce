"""Scores: brightness, sharpness and motion mean what they say, at any frame rate."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.scores import PICTURE_SCORES, VERSIONS, score_frames


def texture(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 255, (9, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def flat(level: int, count: int = 4) -> np.ndarray:
    return np.full((count, 36, 64, 3), level, np.uint8)


def test_every_score_has_a_version() -> None:
    measured = set(score_frames(flat(0), np.arange(4.0)))
    assert measured | {"flow", "black_bars"} == set(VERSIONS)
    assert set(PICTURE_SCORES) <= measured


def test_brightness_is_luma() -> None:
    assert score_frames(flat(77), np.arange(4.0))["brightness"] == pytest.approx(77, abs=0.01)
    green = np.zeros((1, 36, 64, 3), np.uint8)
    green[..., 1] = 200
    assert score_frames(green, np.zeros(1))["brightness"] == pytest.approx(0.587 * 200, abs=0.01)


def test_sharpness_falls_with_blur_and_is_zero_for_nothing() -> None:
    sharp = texture(0)[None]
    blurred = (sharp + np.roll(sharp, 1, 1).astype(int) + np.roll(sharp, 1, 2)) // 3
    one, two = (
        score_frames(frames.astype(np.uint8), np.zeros(1))["sharpness"]
        for frames in (sharp, blurred)
    )
    assert one is not None
    assert two is not None
    assert one > 2 * two > 0
    assert score_frames(flat(99), np.arange(4.0))["sharpness"] == pytest.approx(0, abs=1e-6)


def test_sharpness_agrees_with_a_slow_twin() -> None:
    frame = texture(1)
    luma = frame @ np.array([0.299, 0.587, 0.114])
    values = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 35)
        for x in range(1, 63)
    ]
    score = score_frames(frame[None], np.zeros(1))["sharpness"]
    assert score == pytest.approx(np.var(values), rel=1e-4)


def test_motion_does_not_depend_on_the_frame_rate() -> None:
    picture = texture(2)

    def moving(fps: int) -> float | None:
        seconds = np.arange(2 * fps) / fps
        frames = np.stack([np.roll(picture, int(8 * time + 1e-6), axis=1) for time in seconds])
        return score_frames(frames, seconds)["motion"]

    slow, fast = moving(8), moving(48)
    assert slow is not None
    assert slow > 50
    assert fast == pytest.approx(slow, rel=0.02)


def test_motion_is_per_second_also_where_frames_come_unevenly() -> None:
    frames = np.concatenate([flat(0, 1), flat(10, 1), flat(40, 1)])
    assert score_frames(frames, np.array([0.0, 0.5, 2.0]))["motion"] == pytest.approx(20, abs=0.01)


def test_what_does_not_move_scores_zero_and_one_frame_scores_nothing() -> None:
    assert score_frames(flat(50), np.arange(4.0))["motion"] == 0
    assert score_frames(flat(50, 1), np.zeros(1))["motion"] is None
    two = np.concatenate([flat(0, 1), flat(24, 1)])
    assert score_frames(two, np.array([0, 1 / 60]))["motion"] == pytest.approx(24 * 60, rel=0.01)
