"""Shots: where one take ends and the next begins, from small frames of a whole file.

The rule is adaptive, after PySceneDetect's AdaptiveDetector: a cut is a change of hue, saturation
and brightness that is large in itself and several times the changes around it, so that a moving
camera is no cut. Repeated frames (a slow source in a fast file) do not count as calm.

Fades and dissolves are not looked for; where they begin or end abruptly they count as cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenizer.settings import setting

VERSION = 1
"""Grows whenever the same frames and settings give other shots."""

_CHUNK_FRAMES = 12  # temporary arrays stay small enough to be reused without page faults
_REPEATED = 0.5  # changes up to this are repeated frames or noise
_LAST_FRAME_SECONDS = 0.04  # of a file with one frame


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    """When a change between two frames is a cut."""

    min_change: float = setting(
        9.0, "smallest change that is a cut: mean difference of hue (0-180), saturation and value"
    )
    min_ratio: float = setting(3.0, "how many times the mean of the changes around it a cut is")
    reach_frames: int = setting(2, "changes on each side that a cut is compared with")
    reach_seconds: float = setting(0.25, "how far those may lie from the cut where frames repeat")
    min_seconds: float = setting(0.2, "a cut that comes sooner after another one is not counted")

    def __post_init__(self) -> None:
        if not 0 < self.min_change <= 255:
            raise ValueError(f"min_change ({self.min_change}) must lie in (0, 255]")
        if self.min_ratio < 1:
            raise ValueError(f"min_ratio ({self.min_ratio}) must be at least 1")
        if self.reach_frames < 1:
            raise ValueError(f"reach_frames ({self.reach_frames}) must be at least 1")
        for name in ("reach_seconds", "min_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be below 0")


@dataclass(frozen=True)
class Shot:
    """Frames [start_index, end_index), on display over [start_pts, end_pts)."""

    start_pts: int
    end_pts: int
    start_index: int
    end_index: int


def find_shots(
    pts: np.ndarray,
    frames: np.ndarray,
    time_base: tuple[int, int],
    settings: ShotSettings | None = None,
) -> list[Shot]:
    """The shots of a file: they follow one another and cover every frame.

    `pts` is int64 (n,), growing; `frames` uint8 (n, h, w, 3) RGB, the same frames small. The last
    frame is shown for the median duration of a frame.
    """
    if len(pts) == 0:
        return []
    settings = settings or ShotSettings()
    seconds_per_tick = time_base[0] / time_base[1]
    seconds = (pts - pts[0]) * seconds_per_tick
    cuts = find_cuts(frame_changes(frames), seconds, settings)
    last_ticks = max(1, round(_LAST_FRAME_SECONDS / seconds_per_tick))
    if len(pts) > 1:
        last_ticks = int(np.median(np.diff(pts)))
    edges = [0, *cuts, len(pts)]
    edge_pts = [*(int(pts[index]) for index in edges[:-1]), int(pts[-1]) + last_ticks]
    return [
        Shot(edge_pts[i], edge_pts[i + 1], edges[i], edges[i + 1]) for i in range(len(edges) - 1)
    ]


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


def find_cuts(changes: np.ndarray, seconds: np.ndarray, settings: ShotSettings) -> Sequence[int]:
    """Indices of the frames that begin a new shot, without the first."""
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
        if seconds[index] - seconds[cuts[-1] if cuts else 0] >= settings.min_seconds:
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
