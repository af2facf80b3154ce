"""Hard cuts: the frame after which everything is another picture.

The rule is adaptive, after PySceneDetect's AdaptiveDetector: a cut is a change of hue, saturation
and brightness that is large in itself and several times the changes around it, so that a moving
camera is no cut. Repeated frames (a slow source in a fast file) do not count as calm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.shots.settings import ShotSettings

_CHUNK_FRAMES = 12  # temporary arrays stay small enough to be reused without page faults
_REPEATED = 0.5  # changes up to this are repeated frames or noise


def frame_changes(frames: np.ndarray) -> np.ndarray:
    """float32 (n,): the change that leads to each frame, 0 for the first.

    Mean over pixels of the absolute differences of hue (circular, 0-180), saturation and value
    (0-255), averaged over the three.
    """
    changes = np.zeros(len(frames), np.float32)
    for start in range(0, len(frames) - 1, _CHUNK_FRAMES):
        differences = np.diff(_hsv(frames[start : start + _CHUNK_FRAMES + 1]), axis=1)
        np.abs(differences, out=differences)
        hue = differences[0]
        np.minimum(hue, 180 - hue, out=hue)
        means = differences.mean(axis=(0, 2))
        changes[start + 1 : start + 1 + len(means)] = means
    return changes


def find_cuts(
    changes: np.ndarray,
    seconds: np.ndarray,
    settings: ShotSettings,
    goes_on: Callable[[int], bool],
) -> Sequence[int]:
    """Indices of the frames that begin a new shot, without the first.

    `goes_on(index)` is asked of each that could: True where it continues the take before it.
    """
    moving = np.flatnonzero(changes > _REPEATED)
    strength, when = changes[moving], seconds[moving]
    total, count = np.zeros(len(moving)), np.zeros(len(moving))
    for distance in range(1, min(settings.reach_frames, len(moving) - 1) + 1):
        near = when[distance:] - when[:-distance] <= settings.reach_seconds
        near |= moving[distance:] - moving[:-distance] <= settings.reach_frames
        total[distance:] += near * strength[:-distance]
        count[distance:] += near
        total[:-distance] += near * strength[distance:]
        count[:-distance] += near
    around = np.maximum(1.0, total / np.maximum(1, count))
    is_cut = (strength >= settings.min_change) & (strength >= settings.min_ratio * around)
    cuts: list[int] = []
    for index in moving[is_cut]:
        is_late = seconds[index] - seconds[cuts[-1] if cuts else 0] >= settings.min_seconds
        if is_late and not goes_on(int(index)):
            cuts.append(int(index))
    return cuts


def _hsv(frames: np.ndarray) -> np.ndarray:
    """float32 (3, n, h * w): hue (0-180 for a full turn), saturation and value (0-255)."""
    red, green, blue = frames.reshape(len(frames), -1, 3).transpose(2, 0, 1).astype(np.float32)
    hsv = np.empty((3, *red.shape), np.float32)
    hue, saturation, value = hsv
    np.maximum(np.maximum(red, green), blue, out=value)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    np.divide(255 * chroma, np.maximum(value, 1), out=saturation)
    scale = 30 / np.maximum(chroma, 1)
    np.multiply(red - green, scale, out=hue)
    hue += 120
    np.copyto(hue, (blue - red) * scale + 60, where=value == green)
    np.copyto(hue, (green - blue) * scale, where=value == red)
    hue += 180 * (hue < 0)
    return hsv
