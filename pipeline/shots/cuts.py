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
    """float32 (n,): the change that leads to each frame of uint8 (n, h, w, 3) RGB, 0 for the first.

    Mean over pixels of the absolute differences of hue (circular, 0-180), saturation and value
    (0-255), averaged over the three.
    """
    import cv2

    num_frames, height, width, _ = frames.shape
    changes = np.zeros(num_frames, np.float32)
    for start in range(0, num_frames - 1, _CHUNK_FRAMES):
        chunk = np.ascontiguousarray(frames[start : start + _CHUNK_FRAMES + 1])
        tall = cv2.cvtColor(chunk.reshape(-1, width, 3), cv2.COLOR_RGB2HSV)
        hsv = tall.reshape(len(chunk), height * width, 3)
        differences = cv2.absdiff(hsv[1:].reshape(-1, 3), hsv[:-1].reshape(-1, 3))
        hue = differences[:, 0]
        np.minimum(hue, 180 - hue, out=hue)
        sums = differences.reshape(len(chunk) - 1, -1).sum(axis=1, dtype=np.uint32)
        changes[start + 1 : start + len(chunk)] = sums / (3 * height * width)
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
