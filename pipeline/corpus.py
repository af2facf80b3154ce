"""The demo corpus: short films of real handwritten digits that glide over a dark background.

Each clip shows one digit of scikit-learn's `load_digits` (UCI "Optical Recognition of Handwritten
Digits", CC BY 4.0) in one colour, moving straight to one side for 1.125 s. Ten clips are joined by
hard cuts into each H.264 file; a JSON beside it says what they show. A few still images and broken
files make it a corpus like others. Everything follows from the seed, to the byte.

    write_corpus("runs/demo/videos", seed=0)
    for frames, attributes in render_clips(num_clips=10, seed=0): ...
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer.settings import UserError

MOTIONS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
COLORS = {
    "red": (255, 64, 56),
    "green": (64, 224, 96),
    "blue": (72, 136, 255),
    "yellow": (255, 216, 56),
}
BACKGROUND = (14, 15, 24)
FRAME_SIZE = 64
ENLARGEMENT = 5
"""Pixels of a frame per pixel of a digit, whose ink fills 8 rows and 3 to 8 columns."""
TRAVEL = (12.0, 17.0)
"""Pixels that a digit moves in one second, lowest and highest."""
FPS = 24
FRAMES_PER_CLIP = 27
CLIPS_PER_VIDEO = 10
LICENSE = "CC-BY-4.0"
ATTRIBUTION = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998"
VERSION = 1
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


def render_clips(
    num_clips: int, seed: int, fps: int = FPS, num_frames: int = FRAMES_PER_CLIP
) -> Iterator[tuple[np.ndarray, dict[str, str]]]:
    """Clips uint8 (num_frames, 64, 64, 3) with their class, motion and color.

    `fps=8, num_frames=9` gives frames 0, 3, ..., 24 of the 24-fps clips, exactly. Up to 1,740 clips
    each show a different handwritten digit; every ten clips show each class once, and neighbours
    among the ten differ in color too. Fewer clips of a seed are the first ones of more.
    """
    for index, (attributes, mask) in enumerate(_plan(num_clips, seed)):
        random = np.random.default_rng([seed, 1, index])
        yield _film(mask, attributes, random, np.arange(num_frames) / fps), attributes


def caption_of(attributes: dict[str, str]) -> str:
    """ "a red 3 moving left", or "a red 3" for a still image."""
    moving = f" moving {attributes['motion']}" if "motion" in attributes else ""
    return f"a {attributes['color']} {attributes['class']}{moving}"


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
        _write_images(partial / "images", num_images, seed)
        _write_broken(partial, seed)
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


def _plan(num_clips: int, seed: int) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    glyphs = _glyphs()
    random = np.random.default_rng([seed, 0])
    queues = {
        label: itertools.cycle([masks[index] for index in random.permutation(len(masks))])
        for label, masks in glyphs.items()
    }
    motions, colors = list(MOTIONS), list(COLORS)
    for start in range(0, num_clips, CLIPS_PER_VIDEO):
        random = np.random.default_rng([seed, 0, start])
        ten = np.arange(start, start + CLIPS_PER_VIDEO)
        shown = zip(
            random.permutation(10),
            random.permutation(ten % len(motions)),
            np.cumsum(random.integers(1, len(colors), CLIPS_PER_VIDEO)) % len(colors),
        )
        for label, motion, color in itertools.islice(shown, num_clips - start):
            attributes = {
                "class": str(label),
                "motion": motions[motion],
                "color": colors[color],
            }
            yield attributes, next(queues[str(label)])


@functools.cache
def _glyphs() -> dict[str, list[np.ndarray]]:
    """Per class the digits as float32 coverage in [0, 1], enlarged and cropped to their ink."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    glyphs: dict[str, list[np.ndarray]] = {str(label): [] for label in range(10)}
    for pixels, label in zip(digits.images, digits.target):
        image = Image.fromarray(np.pad(pixels / 16, 1).astype(np.float32))
        size = (image.width * ENLARGEMENT, image.height * ENLARGEMENT)
        enlarged = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        mask = np.clip((enlarged - 0.12) * 1.5, 0, 1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        glyphs[str(label)].append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return glyphs


def _film(
    mask: np.ndarray, attributes: dict[str, str], random: np.random.Generator, seconds: np.ndarray
) -> np.ndarray:
    """The digit `mask` at each of `seconds`, uint8 (t, 64, 64, 3), wholly inside for 1.125 s."""
    direction = np.array(MOTIONS.get(attributes.get("motion", ""), (0.0, 0.0)))
    duration = FRAMES_PER_CLIP / FPS
    free = FRAME_SIZE - np.array(mask.shape)
    speed = min(random.uniform(*TRAVEL), (free[direction != 0] / duration).min(initial=TRAVEL[1]))
    velocity = direction * speed
    travel = velocity * duration
    low, high = np.maximum(0, -travel), free - np.maximum(0, travel)
    start = random.uniform(low, np.maximum(low, high))
    top, left = (start[:, None] + velocity[:, None] * seconds).astype(np.float32)
    coverage = _tents(top, mask.shape[0]) @ mask @ _tents(left, mask.shape[1]).swapaxes(1, 2)
    background = np.array(BACKGROUND, np.float32)
    color = np.array(COLORS[attributes["color"]], np.float32)
    return np.rint(background + coverage[..., None] * (color - background)).astype(np.uint8)


def _tents(offsets: np.ndarray, size: int) -> np.ndarray:
    """Bilinear placement as a matrix: (t, 64, size), glyph row s goes to frame row offset + s."""
    distance = np.arange(FRAME_SIZE)[:, None] - np.arange(size) - offsets[:, None, None]
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)


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

    options = {"crf": "14", "preset": "veryfast", "threads": "1"}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = FRAME_SIZE, FRAME_SIZE, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _write_images(directory: Path, num_images: int, seed: int) -> None:
    from PIL import Image

    random = np.random.default_rng([seed, 2])
    for index in range(num_images):
        attributes = {"class": str(index % 10), "color": list(COLORS)[random.integers(len(COLORS))]}
        masks = _glyphs()[attributes["class"]]
        mask = masks[random.integers(len(masks))]
        path = directory / f"still_{index:04d}{'.jpg' if index % 4 == 3 else '.png'}"
        Image.fromarray(_film(mask, attributes, random, np.zeros(1))[0]).save(path, quality=95)
        description = {
            "license": LICENSE,
            "caption": caption_of(attributes),
            "label": attributes["class"],
            "attributes": attributes,
        }
        _write_json(path.with_suffix(".json"), description)


def _write_broken(partial: Path, seed: int) -> None:
    """A video cut short, an empty file, a text that claims to be a video, one damaged inside."""
    random = np.random.default_rng([seed, 3])
    source = partial / "videos" / "digits_0000.mp4"
    whole = source.read_bytes()
    damaged = bytearray(whole)
    third = len(whole) // 3
    damaged[third : 2 * third] = random.bytes(third)
    broken = partial / "broken"
    (broken / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (broken / "empty.mp4").write_bytes(b"")
    (broken / "text.mp4").write_text("This is not a video.\n")
    (broken / "damaged.mp4").write_bytes(bytes(damaged))


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
