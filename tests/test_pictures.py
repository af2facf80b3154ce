"""Pictures of clips: what is written can be read back, and says what made it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.pictures import contact_sheet, read_metadata, save_png, write_video

METADATA = {"generated": "true", "seed": "7", "prompt": 'a "red" 3, größer'}


@pytest.fixture
def clip() -> np.ndarray:
    """Nine frames: a bright bar that moves to the right over a dark ground."""
    frames = np.full((9, 32, 48, 3), 20, dtype=np.uint8)
    for index in range(9):
        frames[index, :, 4 * index : 4 * index + 8] = (240, 60, 60)
    return frames


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_a_written_clip_keeps_its_metadata(tmp_path: Path, clip: np.ndarray, name: str) -> None:
    path = write_video(clip, tmp_path / name, fps=8, metadata=METADATA)
    assert path == tmp_path / name
    assert read_metadata(path) == METADATA
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_an_mp4_shows_the_frames_enlarged_at_its_rate(tmp_path: Path, clip: np.ndarray) -> None:
    import av

    path = write_video(clip, tmp_path / "clip.mp4", fps=8, metadata={}, enlarge=4)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 8
        decoded = np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])
    assert decoded.shape == (9, 128, 192, 3)
    shrunk = decoded.reshape(9, 32, 4, 48, 4, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - clip).mean() < 4


def test_a_clip_with_odd_sides_can_be_an_mp4(tmp_path: Path) -> None:
    import av

    clip = np.zeros((2, 33, 35, 3), dtype=np.uint8)
    path = write_video(clip, tmp_path / "odd.mp4", fps=8, metadata={}, enlarge=1)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 2


def test_without_pyav_an_mp4_becomes_a_gif(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = write_video(clip, tmp_path / "clip.mp4", fps=8, metadata=METADATA)
    assert path == tmp_path / "clip.gif"
    with Image.open(path) as image:
        assert image.n_frames == 9
        assert image.info["duration"] == pytest.approx(125, abs=5)


def test_another_kind_of_file_is_refused(tmp_path: Path, clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        write_video(clip, tmp_path / "clip.avi", fps=8, metadata={})


def test_a_png_keeps_its_metadata(tmp_path: Path, clip: np.ndarray) -> None:
    sheet = contact_sheet([("one", [clip])])
    path = save_png(sheet, tmp_path / "sheet.png", METADATA)
    assert read_metadata(path) == METADATA


def test_a_sheet_holds_the_frames_of_its_clips_in_time_order(clip: np.ndarray) -> None:
    sheet = np.asarray(contact_sheet([("", [clip])], frames_per_clip=3, frame_size=32))
    wanted = np.concatenate(
        [clip[0], np.zeros((32, 2, 3), np.uint8), clip[4], np.zeros((32, 2, 3), np.uint8), clip[8]],
        axis=1,
    )
    is_frame = np.ones(wanted.shape[1], dtype=bool)
    is_frame[[48, 49, 98, 99]] = False
    found = [
        (top, left)
        for top in range(sheet.shape[0] - 31)
        for left in range(sheet.shape[1] - wanted.shape[1] + 1)
        if (sheet[top : top + 32, left : left + wanted.shape[1]] == wanted)[:, is_frame].all()
    ]
    assert len(found) == 1


def test_a_sheet_grows_with_its_rows_and_clips(clip: np.ndarray) -> None:
    small = contact_sheet([("a", [clip])], title="Clips")
    large = contact_sheet([("a", [clip, clip]), ("b", [clip])], title="Clips", columns=("x", "y"))
    assert large.width > 1.5 * small.width
    assert large.height > small.height + 64


def test_a_sheet_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
