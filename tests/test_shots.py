"""Shots: hard cuts are found; motion, repeats and flashes are not cuts; takes have their length."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import open_decoder
from pipeline.decode.decoder import DecodeLimits
from pipeline.decode.scan import gather_scan
from pipeline.shots import find_shots
from pipeline.shots.cuts import frame_changes
from pipeline.shots.records import Shot, Transition
from pipeline.shots.settings import ShotSettings
from tests.video_corpus import corpus_folder

CLOCK = (1, 24)


def scene(seed: int, count: int, speed: int = 0) -> np.ndarray:
    """A coloured texture that moves `speed` pixels a frame to the right, (count, 36, 64, 3)."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 255, (9, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(texture, speed * k, axis=1) for k in range(count)])


def starts(pieces: list[Shot | Transition]) -> list[int]:
    assert all(isinstance(piece, Shot) for piece in pieces), pieces
    return [piece.start_index for piece in pieces]


def test_shots_are_half_open_and_cover_every_frame() -> None:
    frames = np.concatenate([scene(0, 10), scene(1, 14), scene(2, 7)])
    pts = 100 + 2 * np.arange(31)
    shots = find_shots(pts, frames, CLOCK)
    assert shots == [Shot(100, 120, 0, 10), Shot(120, 148, 10, 24), Shot(148, 162, 24, 31)]


def test_the_last_frame_is_shown_for_a_typical_duration() -> None:
    pts = np.array([0, 3, 6, 30, 33])
    assert find_shots(pts, scene(0, 5), CLOCK)[-1].end_pts == 36
    assert find_shots(np.array([7]), scene(0, 1), (1, 1)) == [Shot(7, 8, 0, 1)]
    assert find_shots(np.array([7]), scene(0, 1), (1, 1000)) == [Shot(7, 47, 0, 1)]
    assert find_shots(np.array([], np.int64), scene(0, 1)[:0], CLOCK) == []


def test_steady_motion_is_no_cut_but_a_cut_inside_it_is() -> None:
    moving = scene(3, 20, speed=1)
    assert starts(find_shots(np.arange(20), moving, CLOCK)) == [0]
    cut = np.concatenate([moving, scene(4, 20, speed=1)])
    assert starts(find_shots(np.arange(40), cut, CLOCK)) == [0, 20]


def test_repeated_frames_do_not_make_motion_look_like_cuts() -> None:
    jerky = scene(5, 12, speed=2).repeat(3, axis=0)  # a source of 8 fps in a file of 24
    assert starts(find_shots(np.arange(36), jerky, CLOCK)) == [0]
    slides = np.concatenate([scene(seed, 24) for seed in (6, 7, 8)])
    assert starts(find_shots(np.arange(72), slides, CLOCK)) == [0, 24, 48]


def test_a_slow_frame_rate_does_not_make_motion_look_like_cuts() -> None:
    moving = scene(3, 20, speed=3)
    assert starts(find_shots(np.arange(20), moving, (1, 2))) == [0]


def test_a_flash_is_not_two_cuts() -> None:
    frames = scene(9, 30)
    frames[15] = 255
    assert starts(find_shots(np.arange(30), frames, CLOCK)) == [0]


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_a_picture_that_is_back_at_once_was_never_away(num_frames: int) -> None:
    frames = scene(9, 40, speed=1)
    frames[15 : 15 + num_frames] = scene(10, 1)  # a flash, a damaged frame, a stray one
    assert starts(find_shots(np.arange(40), frames, CLOCK)) == [0]


def test_a_jerk_of_the_camera_is_no_cut() -> None:
    frames = scene(9, 40)
    frames[20:] = np.roll(frames[20:], (3, 11), axis=(1, 2))
    assert starts(find_shots(np.arange(40), frames, CLOCK)) == [0]
    frames[20:] = scene(10, 20)
    assert starts(find_shots(np.arange(40), frames, CLOCK)) == [0, 20]


def test_a_long_take_is_split_evenly_by_pts() -> None:
    pts = np.array([*range(0, 40, 2), *range(40, 120)])  # half the rate at first
    frames = np.concatenate([scene(0, 70), scene(1, 30)])
    settings = ShotSettings(longest_seconds=1.5)
    pieces = find_shots(pts, frames, CLOCK, settings)
    assert [(piece.start_pts, piece.end_pts) for piece in pieces] == [
        (0, 30),
        (30, 60),
        (60, 90),
        (90, 120),
    ]
    assert [piece.start_index for piece in pieces] == [0, 15, 40, 70]
    assert all(piece.start_pts == pts[piece.start_index] for piece in pieces)
    assert starts(find_shots(pts, frames, CLOCK, ShotSettings(longest_seconds=4.0))) == [0, 70]
    with pytest.raises(ValueError, match="longest_seconds"):
        ShotSettings(longest_seconds=1.0, shortest_seconds=2.0)


def test_no_take_is_split_finer_than_its_frames() -> None:
    pieces = find_shots(
        np.array([0, 1000, 2000]), scene(0, 3), (1, 1), ShotSettings(longest_seconds=1)
    )
    assert [(piece.start_index, piece.end_index) for piece in pieces] == [(0, 1), (1, 2), (2, 3)]


def test_settings_decide_and_are_checked() -> None:
    frames = np.concatenate([scene(0, 30), scene(1, 8), scene(2, 30)])
    pts = np.arange(68)
    assert starts(find_shots(pts, frames, CLOCK, ShotSettings(min_seconds=0.1))) == [0, 30, 38]
    assert starts(find_shots(pts, frames, CLOCK, ShotSettings(min_seconds=0.5))) == [0, 30]
    assert starts(find_shots(pts, frames, CLOCK, ShotSettings(min_change=200.0))) == [0]
    with pytest.raises(ValueError, match="min_ratio"):
        ShotSettings(min_ratio=0.5)


def test_changes_agree_with_a_slow_twin() -> None:
    import colorsys

    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (4, 5, 6, 3), dtype=np.uint8)
    slow = [0.0]
    for before, after in zip(frames, frames[1:]):
        total = 0.0
        for one, two in zip(before.reshape(-1, 3), after.reshape(-1, 3)):
            h1, s1, v1 = colorsys.rgb_to_hsv(*(one / 255))
            h2, s2, v2 = colorsys.rgb_to_hsv(*(two / 255))
            turn = abs(h1 - h2)
            total += 180 * min(turn, 1 - turn) + 255 * abs(s1 - s2) + 255 * abs(v1 - v2)
        slow.append(total / 30 / 3)
    np.testing.assert_allclose(frame_changes(frames), slow, atol=1.0)


def test_changes_do_not_depend_on_how_they_are_chunked() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (1100, 36, 64, 3), dtype=np.uint8)
    start = time.process_time()
    whole = frame_changes(frames)
    assert time.process_time() - start < 1.0
    np.testing.assert_array_equal(whole[500:530][1:], frame_changes(frames[500:530])[1:])
    np.testing.assert_array_equal(whole[1000:][1:], frame_changes(frames[1000:])[1:])


@pytest.mark.slow
def test_all_cuts_between_moving_digits_are_found(tmp_path: Path) -> None:
    from pipeline.corpus import write_corpus

    write_corpus(tmp_path / "corpus", seed=5, num_clips=100, num_images=1)
    decoder = open_decoder("pyav", DecodeLimits())
    wrong = 0
    for path in sorted((tmp_path / "corpus" / "videos").glob("*.mp4")):
        scan = gather_scan(decoder, path)
        found = starts(find_shots(scan.pts, scan.frames, decoder.probe(path).time_base))
        wrong += len(set(found) ^ set(range(0, 270, 27)))
    assert wrong == 0


REAL_CUTS = {
    "bikes_multishot.mp4": [30, 76, 137, 187, 242],
    "bbb_480p_30s.mp4": [285, 378, 553],
    "bbb_1080p60_2s.mp4": [21],
    "nasa_13013.mp4": [202],
    "vfr_drop.mp4": [42],
    "bottles_static_40s.mp4": [],
    "foreman_hevc_720p.mp4": [],
    "carphone_qcif.mp4": [],
    "forest_848x464.mp4": [],
    "mpeg4_xvid_mp3.avi": [],
}
REAL_TRANSITIONS = {
    "bbb_480p_30s.mp4": [("fade", 8, 56)],
    "nasa_13013.mp4": [("dissolve", 126, 151)],  # the manifest calls it a cut at 127
    "mpeg4_xvid_mp3.avi": [("fade", 10, 18)],
}


def pieces_of(path: Path) -> list[Shot | Transition]:
    decoder = open_decoder("pyav", DecodeLimits())
    scan = gather_scan(decoder, path)
    return find_shots(scan.pts, scan.frames, decoder.probe(path).time_base)


def hard_cuts(pieces: list[Shot | Transition]) -> list[int]:
    return [
        behind.start_index
        for before, behind in zip(pieces, pieces[1:])
        if isinstance(before, Shot) and isinstance(behind, Shot)
    ]


COMPOSITES = sorted(corpus_folder().glob("*.shots.json"))


@pytest.mark.corpus
@pytest.mark.parametrize("told", COMPOSITES, ids=lambda path: path.name)
def test_every_join_of_a_composite_is_found_and_nothing_else_is_one(told: Path) -> None:
    truth = json.loads(told.read_text(encoding="utf-8"))
    pieces = pieces_of(told.parent / truth["file"])
    hard = [each["frame"] for each in truth["transitions"] if each["type"] == "cut"]
    found = hard_cuts(pieces)
    matched = {frame for frame in found if any(abs(frame - cut) <= 1 for cut in hard)}
    assert all(any(abs(frame - cut) <= 1 for frame in found) for cut in hard)
    assert len(set(found) - matched) <= 1
    for each in truth["transitions"]:
        if each["type"] != "cut":
            assert any(is_that(piece, each) for piece in pieces), each


def is_that(piece: Shot | Transition, told: dict) -> bool:
    """Whether a piece is the transition that is told of: half of what both span they share."""
    if not (isinstance(piece, Transition) and told["type"].startswith(piece.kind)):
        return False
    both = min(piece.end_index, told["end"]) - max(piece.start_index, told["start"])
    return both >= 0.5 * (max(piece.end_index, told["end"]) - min(piece.start_index, told["start"]))


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_CUTS)
def test_cuts_and_transitions_of_real_films_are_found(name: str, shared_videos: Path) -> None:
    if not (shared_videos / name).exists():
        pytest.skip("another corpus")
    pieces = pieces_of(shared_videos / name)
    assert hard_cuts(pieces) == REAL_CUTS[name]
    assert [
        (piece.kind, piece.start_index, piece.end_index)
        for piece in pieces
        if isinstance(piece, Transition)
    ] == REAL_TRANSITIONS.get(name, [])
