"""Shots: where a video cuts, from its small frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenizer.settings import setting

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    ratio: float = setting(3.0, "a cut differs this many times more than its neighbours")
    floor: float = setting(4.0, "and by at least this much, mean absolute difference of RGB")


@dataclass(frozen=True)
class Shot:
    start_pts: int
    end_pts: int
    start_index: int
    end_index: int


def find_shots(pts: np.ndarray, frames: np.ndarray, settings: ShotSettings) -> list[Shot]:
    n = len(pts)
    last_step = int(pts[-1] - pts[-2]) if n > 1 else 1
    edges_pts = [*pts.tolist(), int(pts[-1]) + last_step]
    diff = np.zeros(n)
    for i in range(1, n):
        diff[i] = np.abs(frames[i].astype(np.int16) - frames[i - 1]).mean()
    cuts = [0]
    for i in range(1, n):
        around = [diff[j] for j in range(max(1, i - 2), min(n, i + 3)) if j != i]
        base = max(np.mean(around) if around else 0.0, 1e-3)
        if diff[i] >= settings.floor and diff[i] / base >= settings.ratio:
            cuts.append(i)
    cuts.append(n)
    return [Shot(edges_pts[a], edges_pts[b], a, b) for a, b in zip(cuts, cuts[1:])]
