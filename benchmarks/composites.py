"""Composites: films put together from takes of real ones, with the truth about every join.

    for film in composites(Path("../shared/videos"), count=60, seed=0): film.frames, film.truth

Hard cuts, dissolves of 6 to 48 frames, fades through black and white, at 12 to 60 frames a second;
inside takes flashes, whip pans, moving and zooming crops, frames that repeat, light that changes.
Frames are made at 192 x 108 and come out as a scan's, 64 x 36, with a level of noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation

from pipeline.decode.scan import SCAN_HEIGHT, SCAN_WIDTH

TAKES = {  # [start, end) of single takes, by the manifest's cuts and by eye
    "bbb_480p_30s.mp4": [(60, 285), (285, 378), (378, 553), (553, 720)],
    "bikes_multishot.mp4": [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242)],
    "bottles_static_40s.mp4": [(0, 300)],
    "foreman_hevc_720p.mp4": [(0, 248)],
    "nasa_13013.mp4": [(0, 125), (152, 202), (202, 325)],
    "forest_848x464.mp4": [(0, 96)],
    "asl_eat.mkv": [(0, 47)],
    "carphone_qcif.mp4": [(0, 120)],
    "no_duration.webm": [(0, 74)],
    "phone_nonutf8_metadata.3gp": [(0, 71)],
    "composite_dev.mp4": [(180, 224), (224, 304), (406, 464), (484, 533)],
}
_WIDTH, _HEIGHT = 192, 108
_KINDS: tuple[Kind, ...] = ("cut", "dissolve", "fade")
_SHARES = (0.5, 0.3, 0.2)

Kind = Literal["cut", "dissolve", "fade"]


class Join(NamedTuple):
    """Frames [start, end) that belong to no take; for a cut both are the first of the new one."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class Film:
    """uint8 (n, 36, 64, 3) frames at `fps`, and the joins in them."""

    name: str
    fps: int
    frames: np.ndarray
    truth: tuple[Join, ...]


def composites(videos: Path, count: int, seed: int) -> Iterator[Film]:
    """`count` films of 9 takes each; the same ones for the same seed and videos."""
    takes = []
    for name, spans in TAKES.items():
        if (videos / name).exists():
            frames = _decoded(videos / name)
            takes += [frames[start:end] for start, end in spans]
    for index in range(count):
        yield _composite(f"composite {index}", np.random.default_rng([seed, index]), takes)


def _decoded(path: Path) -> np.ndarray:
    with av.open(str(path), metadata_errors="replace") as container:
        return np.stack(
            [
                frame.to_ndarray(
                    format="rgb24",
                    width=_WIDTH,
                    height=_HEIGHT,
                    interpolation=int(Interpolation.AREA),
                )
                for frame in container.decode(container.streams.video[0])
            ]
        )


def _composite(name: str, random: np.random.Generator, takes: list[np.ndarray]) -> Film:
    fps = int(random.choice([12, 15, 24, 24, 24, 25, 30, 60]))
    lengths = random.integers(20, 90, 9) * max(fps, 24) // 24
    joins = [_drawn_join(random, fps) for _ in lengths[1:]]
    parts: list[np.ndarray] = []
    truth: list[Join] = []
    at = 0
    tail = np.empty((0, _HEIGHT, _WIDTH, 3), np.float32)  # what the last take goes on with
    for index, length in enumerate(lengths):
        lead = joins[index - 1][1] if index else 0
        lag = joins[index][1] if index < len(joins) else 0
        take = _drawn_take(random, takes, lead + int(length) + lag, fps)
        if index:
            kind, _, hold, level = joins[index - 1]
            join = _joined(kind, tail, take[:lead], hold, level, eased=random.random() < 0.2)
            truth.append(Join(kind, at, at + len(join)))
            parts.append(join)
            at += len(join)
        body = take[lead : lead + int(length)]
        parts.append(_disturbed(random, body))
        at += len(body)
        tail = take[lead + int(length) :]
    frames = [
        cv2.resize(each, (SCAN_WIDTH, SCAN_HEIGHT), interpolation=cv2.INTER_AREA)
        for part in parts
        for each in part
    ]
    noisy = np.stack(frames) + random.normal(0, 0.7, (len(frames), SCAN_HEIGHT, SCAN_WIDTH, 3))
    return Film(name, fps, np.clip(noisy + 0.5, 0, 255).astype(np.uint8), tuple(truth))


def _drawn_join(random: np.random.Generator, fps: int) -> tuple[Kind, int, int, float]:
    """(kind, frames mixed on each side, frames held, level)."""
    kind = _KINDS[random.choice(3, p=_SHARES)]
    if kind == "cut":
        return kind, 0, 0, 0.0
    mixed = max(6, int(random.integers(6, 49)) * fps // 24)
    if kind == "dissolve":
        return kind, mixed, 0, 0.0
    return (
        kind,
        max(4, mixed // 2),
        int(random.choice([0, 0, 3, 10])),
        float(random.choice([0, 255])),
    )


def _drawn_take(
    random: np.random.Generator, takes: list[np.ndarray], count: int, fps: int
) -> np.ndarray:
    """float32 (count, h, w, 3): part of a take, slowed, repeated, mirrored, panned or dimmed."""
    step = float(random.choice([24 / fps, min(1.0, 24 / fps), 0.5 * min(1.0, 24 / fps)]))
    long_enough = [take for take in takes if len(take) > count * step]
    take = long_enough[random.integers(len(long_enough))] if long_enough else max(takes, key=len)
    step = min(step, (len(take) - 1) / count)
    start = random.uniform(0, len(take) - 1 - (count - 1) * step)
    frames = take[(start + step * np.arange(count)).astype(int)]
    if random.random() < 0.5:
        frames = frames[:, :, ::-1]
    if random.random() < 0.35:
        frames = _panned(random, frames)
    gain = random.uniform(0.6, 1.15) if random.random() < 0.4 else 1.0
    return np.clip(frames.astype(np.float32) * gain, 0, 255)


def _panned(random: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """A window of the picture that moves and zooms evenly."""
    zooms = random.uniform(0.5, 0.95) * np.linspace(1, random.uniform(0.85, 1.2), len(frames))
    ways = np.linspace(random.random(2), random.random(2), len(frames))
    panned = np.empty_like(frames)
    for index, (zoom, way) in enumerate(zip(np.minimum(zooms, 1), ways)):
        x, y = way * (1 - zoom) * (_WIDTH, _HEIGHT)
        matrix = np.array([[zoom, 0, x], [0, zoom, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        panned[index] = cv2.warpAffine(frames[index], matrix, (_WIDTH, _HEIGHT), flags=flags)
    return panned


def _disturbed(random: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """The take with what is no join: a flash, a whip pan, light that changes."""
    frames = frames.copy()
    if random.random() < 0.12:
        at = int(random.integers(5, len(frames) - 6))
        frames[at : at + int(random.integers(1, 4))] *= random.uniform(0, 0.3)
        frames[at] = 255 - frames[at]
    if random.random() < 0.08 and len(frames) > 30:
        at, length, shift = int(random.integers(8, len(frames) - 18)), 8, 0
        for step in range(len(frames) - at):
            speed = int(24 * np.sin(np.pi * step / length)) if step < length else 0
            shift += speed
            frame = np.roll(frames[at + step], shift, axis=1)
            frames[at + step] = cv2.blur(frame, (speed, 1)) if speed > 1 else frame
    if random.random() < 0.08:
        frames *= np.linspace(1, random.uniform(0.6, 1), len(frames))[:, None, None, None]
    return frames


def _joined(
    kind: Kind, tail: np.ndarray, lead: np.ndarray, hold: int, level: float, *, eased: bool
) -> np.ndarray:
    share = ((np.arange(len(lead)) + 1) / (len(lead) + 1))[:, None, None, None]
    if eased:
        share = share * share * (3 - 2 * share)
    if kind == "fade":
        held = np.full((hold, _HEIGHT, _WIDTH, 3), level, np.float32)
        out = (1 - share) * tail + share * level
        return np.concatenate([out, held, share * lead + (1 - share) * level])
    return (1 - share) * tail + share * lead
