"""The demo corpus: clips that show what they say, files that are the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import CLIPS_PER_VIDEO, write_corpus
from pipeline.digits import BACKGROUND, FRAMES_PER_CLIP, MOTIONS, caption_of, render_clips
from tokenizer.settings import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("corpus") / "videos", seed=3, num_clips=15, num_images=4
    ).directory


def centers(frames: np.ndarray) -> np.ndarray:
    """Where the light of each frame lies: row, column."""
    light = (frames.astype(np.int32) - BACKGROUND).clip(min=0).sum(axis=3)
    places = np.arange(light.shape[1]), np.arange(light.shape[2])
    total = light.sum(axis=(1, 2))
    return (
        np.stack([light.sum(axis=2) @ places[0], light.sum(axis=1) @ places[1]], 1) / total[:, None]
    )


def test_a_clip_moves_straight_to_the_side_that_it_says() -> None:
    for frames, attributes in render_clips(20, seed=0):
        path = centers(frames)
        moved = path[24] - path[0]
        expected = np.array(MOTIONS[attributes["motion"]])
        assert 8 < moved @ expected < 14
        assert abs(moved @ expected[::-1]) < 0.2
        steps = np.diff(path, axis=0) @ expected
        np.testing.assert_allclose(steps, steps.mean(), atol=0.1)


def test_a_clip_shows_the_color_that_it_says() -> None:
    strongest = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}
    for frames, attributes in render_clips(20, seed=0):
        brightest = frames.reshape(-1, 3).max(axis=0)
        assert set(np.flatnonzero(brightest > 200)) == set(strongest[attributes["color"]])


def test_a_digit_stays_inside_the_frame() -> None:
    for frames, _ in render_clips(40, seed=1):
        light = (frames.astype(int) - BACKGROUND).clip(min=0).sum(axis=(1, 2, 3))
        assert light.max() - light.min() < 0.02 * light.mean()


def test_every_third_frame_of_24_fps_is_the_clip_at_8_fps() -> None:
    fast = render_clips(5, seed=0)
    slow = render_clips(5, seed=0, fps=8, num_frames=9)
    for (frames, said), (fewer, also) in zip(fast, slow):
        np.testing.assert_array_equal(frames[::3], fewer)
        assert said == also


def test_clips_are_different_digits_and_fewer_are_the_first_of_more() -> None:
    many = list(render_clips(200, seed=0, num_frames=1))
    few = list(render_clips(25, seed=0, num_frames=1))
    for (frames, said), (same, also) in zip(few, many):
        np.testing.assert_array_equal(frames, same)
        assert said == also
    shapes = set()
    for frames, attributes in many:
        light = (frames[0].astype(int) - BACKGROUND).max(axis=2)
        shapes.add((attributes["class"], round(light.sum() / light.max(), 2)))
    assert len(shapes) > 190


def test_left_out_clips_are_the_first_ones() -> None:
    whole = list(render_clips(17, seed=0))
    rest = list(render_clips(5, seed=0, first=12))
    assert [said for _, said in rest] == [said for _, said in whole[12:]]
    for (frames, _), (same, _) in zip(rest, whole[12:]):
        np.testing.assert_array_equal(frames, same)


def test_neighbours_in_a_video_differ_in_class_and_color() -> None:
    said = [attributes for _, attributes in render_clips(60, seed=0, num_frames=1)]
    for index in range(1, len(said)):
        if index % CLIPS_PER_VIDEO:
            assert said[index]["class"] != said[index - 1]["class"]
            assert said[index]["color"] != said[index - 1]["color"]


def test_files_decode_to_the_clips_that_their_sidecars_describe(corpus: Path) -> None:
    import av

    rendered = render_clips(15, seed=3)
    for path in sorted((corpus / "videos").glob("*.mp4")):
        described = json.loads(path.with_suffix(".json").read_text())
        with av.open(str(path)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(decoded) == FRAMES_PER_CLIP * len(described["clips"])
        for number, clip in enumerate(described["clips"]):
            frames, attributes = next(rendered)
            shown = np.stack(decoded[number * FRAMES_PER_CLIP :][:FRAMES_PER_CLIP])
            error = np.square(shown.astype(float) - frames).mean()
            assert 10 * np.log10(255**2 / error) > 32
            assert clip["attributes"] == attributes
            assert clip["label"] == attributes["class"]
            assert clip["caption"] == caption_of(attributes)
            assert clip["start_seconds"] * 24 == number * FRAMES_PER_CLIP
            assert clip["end_seconds"] * 24 == (number + 1) * FRAMES_PER_CLIP
    assert next(rendered, None) is None


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    corpus: Path, tmp_path: Path
) -> None:
    again = write_corpus(tmp_path / "again", seed=3, num_clips=15, num_images=4).directory
    other = write_corpus(tmp_path / "other", seed=4, num_clips=15, num_images=4).directory
    hashes = [
        json.loads((each / "corpus.json").read_text())["sha256"] for each in (corpus, again, other)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0]["videos/digits_0000.mp4"] != hashes[2]["videos/digits_0000.mp4"]


def test_a_second_run_does_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert not write_corpus(corpus, seed=3, num_clips=15, num_images=4).written
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds something else"):
        write_corpus(tmp_path, seed=0, num_clips=1, num_images=0)
    assert (tmp_path / "holiday.mp4").read_bytes() == b"mine"


def test_another_seed_or_a_changed_file_is_refused(tmp_path: Path) -> None:
    directory = write_corpus(tmp_path / "videos", seed=0, num_clips=2, num_images=0).directory
    with pytest.raises(UserError, match="another folder"):
        write_corpus(directory, seed=1, num_clips=2, num_images=0)
    (directory / "videos" / "digits_0000.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="differs from what"):
        write_corpus(directory, seed=0, num_clips=2, num_images=0)


def test_broken_files_cannot_be_decoded(corpus: Path) -> None:
    import av

    paths = sorted((corpus / "broken").glob("*.mp4"))
    assert [path.stem for path in paths] == ["damaged", "empty", "text", "truncated"]
    for path in paths:
        with pytest.raises(av.error.InvalidDataError), av.open(str(path)) as container:
            list(container.decode(video=0))


def test_still_images_say_what_they_show(corpus: Path) -> None:
    from PIL import Image

    stills = sorted(path for path in (corpus / "images").iterdir() if path.suffix != ".json")
    assert [path.suffix for path in stills] == [".png", ".png", ".png", ".jpg"]
    for path in stills:
        described = json.loads(path.with_suffix(".json").read_text())
        assert described["caption"] == caption_of(described["attributes"])
        with Image.open(path) as image:
            assert image.size == (64, 64)
