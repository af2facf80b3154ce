"""The demo corpus: a folder of video files, still images and a few broken files.

    videos/digits_0000.mp4    ten clips of moving digits, 1.125 s each, joined by hard cuts (H.264)
    videos/digits_0000.json   where each begins and ends, its caption, label and attributes
    images/still_0000.png     a digit at rest, described in still_0000.json
    broken/                   what a real collection has too
    corpus.json               settings, licence and the hash of every file; written last

No digit is shown twice. Everything follows from the seed, to the byte (with one build of FFmpeg).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.digits import FPS, FRAME_SIZE, FRAMES_PER_CLIP, caption_of, render_clips
from tokenizer.settings import UserError

CLIPS_PER_VIDEO = 10
LICENSE = "CC-BY-4.0"
ATTRIBUTION = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998"
VERSION = 2
"""Grows whenever the same seed gives other bytes."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What `write_corpus` left in `directory`."""

    directory: Path
    num_clips: int
    num_videos: int
    num_images: int
    num_broken: int
    written: bool
    """False when the folder was complete before and nothing was done."""


def write_corpus(
    directory: str | Path, seed: int = 0, num_clips: int = 1200, num_images: int = 40
) -> Corpus:
    """Writes videos/, images/, broken/ and corpus.json; does nothing where they are complete.

    Files are made in a folder beside `directory`, which takes its name at the end. Raises UserError
    when `directory` holds anything else.
    """
    directory = Path(directory)
    settings = {"version": VERSION, "seed": seed, "num_clips": num_clips, "num_images": num_images}
    made = not _is_complete(directory, settings)
    if made:
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for room in ("videos", "images", "broken"):
                (partial / room).mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error})") from None
        _write_videos(partial, num_clips, seed)
        _write_images(partial / "images", num_images, num_clips + CLIPS_PER_VIDEO, seed)
        _write_broken(partial / "broken", num_clips, seed)
        hashes = {
            path.relative_to(partial).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(partial.rglob("*.*"))
        }
        _write_json(
            partial / "corpus.json",
            {
                "settings": settings,
                "license": LICENSE,
                "attribution": ATTRIBUTION,
                "sha256": hashes,
            },
        )
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    return Corpus(
        directory=directory,
        num_clips=num_clips,
        num_videos=len(list((directory / "videos").glob("*.mp4"))),
        num_images=num_images,
        num_broken=len(list((directory / "broken").glob("*.mp4"))),
        written=made,
    )


def _write_videos(partial: Path, num_clips: int, seed: int) -> None:
    clips: list[tuple[np.ndarray, dict[str, str]]] = []
    video = 0
    for clip in render_clips(num_clips, seed):
        clips.append(clip)
        video_is_full = len(clips) == CLIPS_PER_VIDEO
        if video_is_full or video * CLIPS_PER_VIDEO + len(clips) == num_clips:
            path = partial / "videos" / f"digits_{video:04d}.mp4"
            _encode(path, np.concatenate([frames for frames, _ in clips]))
            _write_json(path.with_suffix(".json"), _describe([each for _, each in clips]))
            clips = []
            video += 1


def _describe(clips: list[dict[str, str]]) -> dict[str, Any]:
    seconds = FRAMES_PER_CLIP / FPS
    return {
        "license": LICENSE,
        "clips": [
            {
                "start_seconds": index * seconds,
                "end_seconds": (index + 1) * seconds,
                "caption": caption_of(attributes),
                "label": attributes["class"],
                "attributes": attributes,
            }
            for index, attributes in enumerate(clips)
        ],
    }


def _encode(path: Path, frames: np.ndarray) -> None:
    import av

    options = {"crf": "14", "preset": "veryfast", "threads": "1", **steady_x264()}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = FRAME_SIZE, FRAME_SIZE, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def steady_x264() -> dict[str, str]:
    """Options with which libx264 gives the same bytes on every x86 processor, each time.

    What it has for AVX-512 gives other bytes, and now and then others again (1 of 12 runs).
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return {"x264-params": "asm=sse4"} if is_x86 else {}


def _write_images(directory: Path, num_images: int, first: int, seed: int) -> None:
    from PIL import Image

    stills = render_clips(num_images, seed, num_frames=1, first=first)
    for index, (frames, attributes) in enumerate(stills):
        del attributes["motion"]
        path = directory / f"still_{index:04d}{'.jpg' if index % 4 == 3 else '.png'}"
        Image.fromarray(frames[0]).save(path, quality=95)
        description = {
            "license": LICENSE,
            "caption": caption_of(attributes),
            "label": attributes["class"],
            "attributes": attributes,
        }
        _write_json(path.with_suffix(".json"), description)


def _write_broken(directory: Path, num_clips: int, seed: int) -> None:
    """A video cut short, an empty file, a text that claims to be a video, one damaged inside.

    They show clips of their own, so that what can be read of them repeats no other clip.
    """
    clips = list(render_clips(CLIPS_PER_VIDEO, seed, first=num_clips))
    damaged = directory / "damaged.mp4"
    _encode(damaged, np.concatenate([frames for frames, _ in clips]))
    _write_json(damaged.with_suffix(".json"), _describe([each for _, each in clips]))
    whole = damaged.read_bytes()
    third = len(whole) // 3
    noise = np.random.default_rng([seed, 3]).bytes(third)
    damaged.write_bytes(whole[:third] + noise + whole[2 * third :])
    (directory / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (directory / "empty.mp4").write_bytes(b"")
    (directory / "text.mp4").write_text("This is not a video.\n")


def _is_complete(directory: Path, settings: dict[str, int]) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{directory}: holds something else than a demo corpus; give an empty folder"
        ) from None
    if found["settings"] != settings:
        raise UserError(
            f"{directory}: holds the demo corpus of {found['settings']}, not {settings}; "
            "give another folder or remove it"
        )
    for name, expected in found["sha256"].items():
        path = directory / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise UserError(f"{path}: differs from what the demo corpus wrote; remove {directory}")
    return True


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
