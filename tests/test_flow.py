"""Flow: speed in pixels a second, whatever the frame rate, the light and the shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.flow import flow_speed


def picture(seed: int = 0) -> np.ndarray:
    """A soft random picture, larger than a frame."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (30, 40), dtype=np.uint8)
    return cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)


def moving(pixels_a_second: float, fps: int, count: int, down: bool = False) -> np.ndarray:
    whole, shifts = picture(), pixels_a_second * np.arange(count) / fps
    moved = [np.float32([[1, 0, -s * (not down)], [0, 1, -s * down]]) for s in shifts]
    return np.stack([cv2.warpAffine(whole, each, (320, 240))[60:132, 60:188] for each in moved])


def speed(greys: np.ndarray, fps: float, aspect: float = 16 / 9) -> float:
    result = flow_speed(greys, np.arange(len(greys)) / fps, aspect)
    assert result is not None
    return result


@pytest.mark.parametrize("pixels_a_second", [4.0, 10.0, 20.0])
def test_flow_is_the_speed_of_what_moves(pixels_a_second: float) -> None:
    assert speed(moving(pixels_a_second, 8, 9), 8) == pytest.approx(pixels_a_second, rel=0.1)


def test_flow_does_not_depend_on_the_frame_rate() -> None:
    assert speed(moving(10, 4, 5), 4) == pytest.approx(speed(moving(10, 8, 9), 8), rel=0.1)


def test_frames_that_repeat_are_time_without_movement() -> None:
    greys = moving(10, 8, 5)
    assert speed(greys.repeat(2, axis=0), 16) == pytest.approx(speed(greys, 8) * 8 / 9, rel=0.01)


def test_uneven_times_count_as_long_as_they_last() -> None:
    greys = moving(8, 8, 5)[[0, 1, 4]]
    result = flow_speed(greys, np.array([0, 1, 4]) / 8, 16 / 9)
    assert result == pytest.approx(8, rel=0.1)


def test_light_is_no_movement() -> None:
    still = np.stack([picture()[:72, :128]] * 5).astype(float)
    dimmed = (still * np.linspace(1, 0.9, 5)[:, None, None]).astype(np.uint8)
    assert speed(dimmed, 8) < 1.0


def test_what_is_squeezed_is_measured_as_it_is_shown() -> None:
    down = moving(6, 8, 9, down=True)
    assert speed(down, 8, aspect=9 / 16) == pytest.approx(speed(down, 8) * (16 / 9) ** 2, rel=0.01)


def test_one_frame_has_no_flow_and_still_frames_have_none_to_speak_of() -> None:
    assert flow_speed(picture()[None, :72, :128], np.zeros(1), 1.0) is None
    assert flow_speed(np.zeros((0, 72, 128), np.uint8), np.zeros(0), 1.0) is None
    assert speed(np.stack([picture()[:72, :128]] * 3), 8) == 0
