"""Moving digits: clips of real handwritten digits that glide through a dark frame.

The digits are scikit-learn's `load_digits` (UCI "Optical Recognition of Handwritten Digits"), each
in one color, moving straight to one side. Everything follows from the seed.

    for frames, attributes in render_clips(num_clips=10, seed=0): ...
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

MOTIONS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
COLORS = {
    "red": (255, 64, 56),
    "green": (64, 224, 96),
    "blue": (72, 136, 255),
    "yellow": (255, 216, 56),
}
BACKGROUND = (14, 15, 24)
FRAME_SIZE = 64
ENLARGEMENT = 6
"""Pixels of a frame per pixel of a digit, whose ink fills 8 rows and 3 to 8 columns."""
TRAVEL = (9.0, 13.0)
"""Pixels that a digit moves in one second, lowest and highest."""
JITTER = 2.0
"""Pixels by which the middle of its way may miss the middle of the frame, in each axis."""
FPS = 24
FRAMES_PER_CLIP = 27
DIGITS_PER_ROUND = 10
"""Each class is shown once in so many clips."""


def render_clips(
    num_clips: int, seed: int, fps: int = FPS, num_frames: int = FRAMES_PER_CLIP, first: int = 0
) -> Iterator[tuple[np.ndarray, dict[str, str]]]:
    """Clips uint8 (num_frames, 64, 64, 3) with their class, motion and color.

    `fps=8, num_frames=9` gives frames 0, 3, ..., 24 of the 24-fps clips, exactly. Up to 1,740 clips
    each show a different handwritten digit; every ten clips show each class once, and neighbours
    among the ten differ in color too. Fewer clips of a seed are the first ones of more; `first`
    leaves out as many of them.
    """
    planned = enumerate(_plan(first + num_clips, seed))
    for index, (attributes, mask) in itertools.islice(planned, first, None):
        random = np.random.default_rng([seed, 1, index])
        yield _film(mask, attributes, random, np.arange(num_frames) / fps), attributes


def caption_of(attributes: dict[str, str]) -> str:
    """A clip's caption, "a red 3 moving left"; without motion a still image's, "a red 3"."""
    moving = f" moving {attributes['motion']}" if "motion" in attributes else ""
    return f"a {attributes['color']} {attributes['class']}{moving}"


def _plan(num_clips: int, seed: int) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    glyphs = _glyphs()
    random = np.random.default_rng([seed, 0])
    queues = {
        label: itertools.cycle([masks[index] for index in random.permutation(len(masks))])
        for label, masks in glyphs.items()
    }
    motions, colors = list(MOTIONS), list(COLORS)
    for start in range(0, num_clips, DIGITS_PER_ROUND):
        random = np.random.default_rng([seed, 0, start])
        round_ = np.arange(start, start + DIGITS_PER_ROUND)
        shown = zip(
            random.permutation(DIGITS_PER_ROUND),
            random.permutation(round_ % len(motions)),
            np.cumsum(random.integers(1, len(colors), DIGITS_PER_ROUND)) % len(colors),
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
        mask = np.clip((enlarged - 0.08) * 1.25, 0, 1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        glyphs[str(label)].append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return glyphs


def _film(
    mask: np.ndarray, attributes: dict[str, str], random: np.random.Generator, seconds: np.ndarray
) -> np.ndarray:
    """The digit `mask` at each of `seconds`, uint8 (t, 64, 64, 3), wholly inside for 1.125 s."""
    direction = np.array(MOTIONS[attributes["motion"]])
    duration = FRAMES_PER_CLIP / FPS
    free = FRAME_SIZE - np.array(mask.shape)
    speed = min(random.uniform(*TRAVEL), free[direction != 0].item() / duration)
    velocity = direction * speed
    travel = velocity * duration
    low, high = np.maximum(0, -travel), free - np.maximum(0, travel)
    high = np.maximum(low, high)
    start = np.clip((low + high) / 2 + random.uniform(-JITTER, JITTER, 2), low, high)
    top, left = (start[:, None] + velocity[:, None] * seconds).astype(np.float32)
    coverage = _tents(top, mask.shape[0]) @ mask @ _tents(left, mask.shape[1]).swapaxes(1, 2)
    background = np.array(BACKGROUND, np.float32)
    color = np.array(COLORS[attributes["color"]], np.float32)
    return np.rint(background + coverage[..., None] * (color - background)).astype(np.uint8)


def _tents(offsets: np.ndarray, size: int) -> np.ndarray:
    """Bilinear placement as a matrix: (t, 64, size), glyph row s goes to frame row offset + s."""
    distance = np.arange(FRAME_SIZE)[:, None] - np.arange(size) - offsets[:, None, None]
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)
