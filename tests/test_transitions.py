"""Transitions: fades and dissolves are found to the frame, and nothing else is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shots import find_shots
from pipeline.shots.blocks import block_means
from pipeline.shots.records import Gradual, Shot, Transition, apart
from pipeline.shots.settings import ShotSettings

CLOCK = (1, 24)


def take(seed: int, count: int, speed: float = 0.0) -> np.ndarray:
    """A soft coloured picture that moves `speed` pixels a frame, float (count, 36, 64, 3)."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 256, (9, 16, 3)).repeat(4, 0).repeat(4, 1).astype(float)
    for axis in (0, 1):
        picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4
    return np.stack([np.roll(picture, round(speed * k), axis=1) for k in range(count)])


def dissolve(one: np.ndarray, two: np.ndarray, length: int) -> np.ndarray:
    """`one`, whose last `length` frames are mixed with the first of `two`."""
    share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    mixed = (1 - share) * one[-length:] + share * two[:length]
    return np.concatenate([one[:-length], mixed, two[length:]])


def fade(one: np.ndarray, two: np.ndarray, half: int, hold: int, level: int) -> np.ndarray:
    share = (np.arange(1, half + 1) / (half + 1))[:, None, None, None]
    out = (1 - share) * one[-half:] + share * level
    back = share * two[:half] + (1 - share) * level
    black = np.full((hold, *one.shape[1:]), float(level))
    return np.concatenate([one[:-half], out, black, back, two[half:]])


def found(frames: np.ndarray, settings: ShotSettings | None = None) -> list[tuple]:
    noisy = frames + np.random.default_rng(0).normal(0, 1, frames.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    pieces = find_shots(np.arange(len(pixels)), pixels, CLOCK, settings)
    edges = [piece.start_index for piece in pieces] + [len(pixels)]
    assert [piece.end_index for piece in pieces] == edges[1:]  # every frame, once
    assert [piece.end_pts for piece in pieces] == edges[1:]
    return [
        ("shot" if isinstance(piece, Shot) else piece.kind, piece.start_index, piece.end_index)
        for piece in pieces
    ]


def overlaps(one: tuple, kind: str, start: int, end: int) -> bool:
    """Whether a piece is that transition: an intersection over union of 0.7 or more."""
    both = min(one[2], end) - max(one[1], start)
    return one[0] == kind and both >= 0.7 * (max(one[2], end) - min(one[1], start))


@pytest.mark.parametrize("length", [6, 9, 16, 24, 36, 48])
@pytest.mark.parametrize("speed", [0.0, 0.1])
def test_a_dissolve_is_found_whatever_its_length(length: int, speed: float) -> None:
    frames = dissolve(take(1, 40 + length, speed), take(2, 40 + length, speed), length)
    first, middle, last = found(frames)
    assert overlaps(middle, "dissolve", 40, 40 + length)
    assert (first[0], last[0]) == ("shot", "shot")


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize(("half", "hold"), [(4, 1), (12, 0), (12, 8), (40, 20)])
def test_a_fade_is_one_transition_with_what_is_black_or_white_between(
    half: int, hold: int, level: int
) -> None:
    frames = fade(take(1, 40 + half, 0.3), take(2, 40 + half, 0.3), half, hold, level)
    _, middle, _ = found(frames)
    assert overlaps(middle, "fade", 40, 40 + 2 * half + hold)


def test_a_film_may_come_out_of_black_and_end_in_it() -> None:
    dark = np.zeros((12, 36, 64, 3))
    frames = fade(fade(dark, take(1, 60), 10, 0, 0), dark, 10, 0, 0)
    kinds = [piece[0] for piece in found(frames)]
    assert kinds == ["shot", "fade", "shot", "fade", "shot"]


def test_a_dissolve_may_follow_a_cut_and_come_before_a_fade() -> None:
    one = np.concatenate([take(1, 20), take(2, 32)])
    two = fade(take(3, 40), take(4, 30), 8, 2, 0)
    pieces = found(dissolve(one, two, 12))
    assert [piece[0] for piece in pieces] == ["shot", "shot", "dissolve", "shot", "fade", "shot"]
    assert pieces[0][2] == 20


def test_movement_is_no_transition() -> None:
    for speed in (0.5, 1, 2, 4, 7):
        assert found(take(5, 120, speed)) == [("shot", 0, 120)]


def test_light_that_changes_is_no_dissolve() -> None:
    frames = take(6, 100) * np.linspace(1, 0.5, 100)[:, None, None, None]
    assert found(frames) == [("shot", 0, 100)]


def test_a_flash_is_no_fade() -> None:
    frames = take(7, 80, 0.3)
    frames[40:42] = 255
    assert found(frames) == [("shot", 0, 80)]


def test_a_hard_cut_is_never_called_gradual() -> None:
    frames = np.concatenate([take(seed, 30, 0.5) for seed in range(6)])
    assert found(frames) == [("shot", 30 * k, 30 * k + 30) for k in range(6)]


def test_repeated_frames_hide_no_dissolve() -> None:
    frames = dissolve(take(1, 32, 0.3), take(2, 32, 0.3), 12).repeat(2, axis=0)
    _, middle, _ = found(frames)
    assert overlaps(middle, "dissolve", 40, 64)


def test_both_can_be_left_alone() -> None:
    frames = dissolve(take(1, 52), fade(take(2, 52), take(3, 52), 12, 3, 0), 12)
    assert [each[0] for each in found(frames)] == ["shot", "dissolve", "shot", "fade", "shot"]
    assert "fade" not in {each[0] for each in found(frames, ShotSettings(fades=False))}
    assert "dissolve" not in {each[0] for each in found(frames, ShotSettings(dissolves=False))}


def test_block_means_agree_with_a_slow_twin() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (130, 36, 64, 3), dtype=np.uint8)
    slow = frames.reshape(130, 9, 4, 16, 4, 3).astype(float).mean(axis=(2, 4)).reshape(130, -1)
    np.testing.assert_allclose(block_means(frames), slow, atol=1e-3)


@given(
    cuts=st.lists(st.integers(1, 59), max_size=8, unique=True),
    edges=st.lists(st.integers(1, 59), max_size=6, unique=True),
)
def test_a_cut_in_or_beside_a_transition_is_part_of_it(cuts: list[int], edges: list[int]) -> None:
    edges = sorted(edges)
    graduals = [Gradual("fade", *pair) for pair in zip(edges[::2], edges[1::2])]
    kept, reaching = apart(sorted(cuts), graduals)
    assert set(kept) <= set(cuts)
    for before, after in zip(graduals, reaching):
        assert after.start <= before.start < before.end <= after.end
        assert after.end - after.start <= before.end - before.start + 2
        assert not any(after.start <= cut <= after.end for cut in kept)
    for cut in set(cuts) - set(kept):
        assert any(each.start <= cut <= each.end for each in reaching)


def test_records_say_where_a_transition_is_in_both_clocks() -> None:
    frames = dissolve(take(1, 52), take(2, 52), 12).astype(np.uint8)
    pts = 1000 + 512 * np.arange(len(frames))
    (piece,) = (p for p in find_shots(pts, frames, (1, 12288)) if isinstance(p, Transition))
    assert piece.start_pts == pts[piece.start_index]
    assert piece.end_pts == pts[piece.end_index]
