"""Stage versions: what a stage gives for fixed input is pinned to the version beside its code.

When one of these fails, the stage's output has changed. If that was meant, raise the version that
the entry names (so that builds make those units anew) and put both new values here.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline import picture_hash, scores, shots, statistics
from pipeline.bars import bars_share, content_cells
from pipeline.clip import PREPROCESS_VERSION, Clip, cut_windows, make_buckets
from pipeline.config import SelectSettings
from pipeline.decode.decoder import Probe
from pipeline.flow import flow_speed
from pipeline.plan import PlannedSource
from pipeline.select import group_for_shards, select_clips
from pipeline.shards.writer import ShardWriter
from pipeline.shots.settings import VERSION as SHOTS_VERSION
from pipeline.shots.settings import ShotSettings
from pipeline.tokenize import TOKENIZE_VERSION


def film() -> np.ndarray:
    """Three takes of 24 small frames: faint patterns that drift, at three levels of light."""
    generator = np.random.default_rng(7)
    takes = []
    for speed, level in ((1, 40), (2, 110), (0, 190)):
        pattern = generator.integers(0, 30, (9, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        takes += [np.roll(pattern + np.uint8(level), speed * index, axis=1) for index in range(24)]
    return np.stack(takes)


def windows() -> list[Clip]:
    probe = Probe(
        kind="video",
        width=640,
        height=360,
        time_base=(1, 12800),
        rotation=0,
        stored_width=640,
        stored_height=360,
        codec="h264",
        container="mp4",
        pixel_format="yuv420p",
        fps=24.0,
        duration_seconds=None,
        num_frames=None,
    )
    template = Clip(clip_id="", source_id="ab" * 32, uri="films/a.mp4")
    buckets = make_buckets([(9, 64, 64), (9, 64, 96), (1, 64, 64)])
    return list(cut_windows(template, probe, 0, 12800 * 5, 8.0, buckets))


def shots_digest() -> Any:
    generator = np.random.default_rng(8)
    tiles = generator.integers(0, 255, (3, 9, 16, 3)).astype(float)
    one, two, three = tiles.repeat(4, axis=1).repeat(4, axis=2)
    mixed = [(one * (8 - k) + two * k) / 8 for k in range(1, 8)]
    faded = [three * (8 - k) / 8 for k in range(1, 9)]
    frames = [*[one] * 24, *mixed, *[two] * 24, *[three] * 24, *faded]
    pts = np.arange(len(frames)) * 512
    found = shots.find_shots(pts, np.stack(frames).astype(np.uint8), (1, 12288), ShotSettings())
    return [[type(piece).__name__, piece.start_pts, piece.end_pts] for piece in found]


def scores_digest() -> Any:
    values = scores.score_frames(film()[:24], np.arange(24) / 24)
    greys = film()[:24:3, :, :, 1].repeat(2, axis=1).repeat(2, axis=2)
    values["flow"] = flow_speed(greys, np.arange(8) / 8, 16 / 9)
    greys[:, :9] = greys[:, 63:] = 0
    values["black_bars"] = bars_share(content_cells(greys), (72, 128))
    return {name: None if value is None else round(value, 1) for name, value in values.items()}


def hash_digest() -> Any:
    return picture_hash.picture_hash(film())


def windows_digest() -> Any:
    return [
        [c.clip_id, c.start_pts, c.end_pts, c.bucket, list(c.crop), c.outcome] for c in windows()
    ]


def selection_digest() -> Any:
    rows = select_clips(windows(), SelectSettings(drop={}, val_share=0.5))
    plan = [
        PlannedSource(
            source_id="ab" * 32,
            uri="films/a.mp4",
            location="films/a.mp4",
            kind="video",
            unit=0,
            generation=0,
            skipped="",
        )
    ]
    groups = group_for_shards(rows, plan, 2)
    return [[row.split for row in rows], [[clip.key for clip in group] for group in groups]]


def shard_digest() -> Any:
    stream = io.BytesIO()
    writer = ShardWriter(stream, ("codes.npy",))
    for number, clip in enumerate(windows()[:2]):
        codes = np.arange(number, number + 50, dtype=np.uint16)
        writer.write(clip.key, {"codes.npy": codes}, clip.metadata(), code_key="0f" * 16)
    sidecar = writer.close()
    return [hashlib.sha256(data).hexdigest() for data in (stream.getvalue(), sidecar)]


def statistics_digest() -> Any:
    tally = statistics.Tally()
    for clip in windows():
        tally.add_sample(clip.metadata(), np.arange(40) % 7, np.arange(40) // 20, 16)
    tally.add_outcome("kept", 3)
    return tally.to_json()


PINNED: dict[str, tuple[Callable[[], Any], int, int, str]] = {
    "shots": (shots_digest, SHOTS_VERSION, 2, "e94dc9d829c4bd5d"),
    "scores": (scores_digest, scores.VERSION, 5, "44d756a184d3300f"),
    "picture_hash": (
        lambda: picture_hash.picture_hash(film()),
        picture_hash.VERSION,
        1,
        "c4fb92197c08e57b",
    ),
    "preprocess": (windows_digest, PREPROCESS_VERSION, 1, "611977bfdabbe290"),
    "selection": (selection_digest, TOKENIZE_VERSION, 2, "92e1b23187216ac5"),
    "shard": (shard_digest, TOKENIZE_VERSION, 2, "d9756663e81c770e"),
    "statistics": (statistics_digest, statistics.VERSION, 2, "becb53b3e9af45df"),
}


@pytest.mark.parametrize("stage", PINNED)
def test_a_stage_whose_output_changes_has_a_new_version(stage: str) -> None:
    make, version, pinned_version, pinned_digest = PINNED[stage]
    text = json.dumps(make(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (version, digest) == (pinned_version, pinned_digest), text[:500]
