"""What all tests share: one torch thread, the data beside the project, small videos."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real, odd and broken videos; the test is skipped where it is absent."""
    folder = Path(os.environ.get("TESSERA_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not (folder / "MANIFEST.csv").exists():
        pytest.skip(f"no videos at {folder} (TESSERA_VIDEOS names another folder)")
    return folder


def write_mp4(path: Path, frames: np.ndarray, fps: int = 24) -> Path:
    """An H.264 file of uint8 frames [t, h, w, 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "14"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def moving_square(num_frames: int, seed: int, size: int = 64) -> np.ndarray:
    """A bright square that crosses a textured frame; another seed looks clearly different."""
    generator = np.random.default_rng(seed)
    background = generator.integers(20, 90, (1, 8, 8, 3), dtype=np.uint8)
    frames = np.repeat(background.repeat(size // 8, 1).repeat(size // 8, 2), num_frames, 0)
    color = generator.integers(120, 255, 3)
    x, y = generator.integers(2, size // 4, 2)
    for index in range(num_frames):
        at = min(x + index, size - 16)
        frames[index, y : y + 16, at : at + 16] = color
    return frames


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled mp4 files of three shots each, an image, and one broken file."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        shots = [moving_square(30, 10 * number + shot) for shot in range(3)]
        label = "even" if number % 2 == 0 else "odd"
        write_mp4(folder / label / f"{number}.mp4", np.concatenate(shots))
    Image.fromarray(moving_square(1, 99)[0]).save(folder / "even" / "still.png")
    (folder / "odd" / "broken.mp4").write_bytes(b"this is not a video" * 50)
    return folder
