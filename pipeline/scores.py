"""Scores: what numbers say of a clip, from its small frames. Stored for every clip, judged later.

brightness   mean luma, 0 to 255 (BT.601)
sharpness    variance of the 4-neighbour Laplacian of luma at 64 x 36, mean over the frames
motion       mean absolute change of luma per second, the frames taken at most at 8 per second
flow         mean speed of what moves, in pixels a second of a picture 128 wide (`flow`)
black_bars   share of the picture that is black borders over the whole shot (`bars`)

Scores are comparable between clips of one version, and with nobody else's numbers.
"""

from __future__ import annotations

import numpy as np

VERSIONS = {"brightness": 1, "sharpness": 1, "motion": 1, "flow": 1, "black_bars": 1}
"""All scores; each version grows whenever the same frames give another score."""
VERSION = sum(VERSIONS.values())
PICTURE_SCORES = ("brightness", "sharpness")
"""What single frames have."""

MOTION_FPS = 8.0
"""Frames per second at which motion is measured, so that the frame rate does not change it."""


def score_frames(frames: np.ndarray, seconds: np.ndarray) -> dict[str, float | None]:
    """Brightness, sharpness and motion of `frames`, uint8 (n, 36, 64, 3) RGB, n >= 1.

    They are shown from `seconds` (n,) on. Motion is None where there are fewer than two.
    """
    luma = frames @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = luma[:, 1:-1, 1:-1]
    laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian -= 4 * inner
    return {
        "brightness": float(luma.mean()),
        "sharpness": float(laplacian.var(axis=(1, 2)).mean()),
        "motion": _motion(luma, seconds),
    }


def _motion(luma: np.ndarray, seconds: np.ndarray) -> float | None:
    times = np.arange(seconds[0], seconds[-1] + 1e-6, 1 / MOTION_FPS)
    shown = np.unique(np.searchsorted(seconds, times + 1e-6, side="right") - 1)
    if shown[-1] != len(seconds) - 1 and len(shown) < 2:
        shown = np.array([0, len(seconds) - 1])
    elapsed = float(seconds[shown[-1]] - seconds[shown[0]])
    if len(shown) < 2 or elapsed <= 0:
        return None
    return float(np.abs(np.diff(luma[shown], axis=0)).mean(axis=(1, 2)).sum() / elapsed)
