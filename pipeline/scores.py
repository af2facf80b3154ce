"""Scores of a clip from its small frames."""

from __future__ import annotations

import numpy as np

VERSION = 1


def score_frames(frames: np.ndarray, seconds: np.ndarray) -> dict[str, float | None]:
    luma = frames @ np.array([0.299, 0.587, 0.114])
    lap = 4 * luma[:, 1:-1, 1:-1] - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    motion = None
    if len(frames) > 1:
        motion = float((np.abs(np.diff(luma, axis=0)).mean((1, 2)) / np.diff(seconds)).mean())
    return {"brightness": float(luma.mean()), "sharpness": float(lap.var((1, 2)).mean()), "motion": motion}
