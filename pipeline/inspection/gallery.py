"""Galleries: small pictures of clips that were kept, and of those that each rule dropped.

    for shelf in make_gallery("runs/demo/data", accounts, rules):
        shelf.outcome, [exhibit.pictures for exhibit in shelf.exhibits]

A clip is shown by three frames (first, middle, last), decoded from its source.
The choice depends on the clips alone, and prefers clips of different files. The pictures cost at
most `seconds`; what is missing says why.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.decode.decoder import ClipRequest
from pipeline.inspection.funnel import score
from pipeline.inspection.originals import Wanted, read_originals
from pipeline.rules import Rule

CLIPS_PER_SHELF, MAX_SHELVES, NUM_FRAMES = 8, 12, 3
THUMB_HEIGHT, MAX_THUMB_WIDTH, JPEG_QUALITY = 96, 192, 78
NEEDED = ("clip_id", "source_id", "uri", "outcome", "kind", "start_pts", "end_pts", "crop")
OPTIONAL = ("start_seconds", "end_seconds", "fps", "caption", "label")
_CONSIDERED = 4096


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One clip: its frames as JPEG files, or the reason why there are none."""

    uri: str
    start_seconds: float
    end_seconds: float
    caption: str
    score: float | None
    """The score that the shelf's rule looked at."""
    pictures: tuple[bytes, ...]
    size: tuple[int, int]
    """Width and height of a picture."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Some clips of one outcome."""

    outcome: str
    rule: Rule | None
    num_clips: int
    exhibits: list[Exhibit]


def make_gallery(
    root: str | Path, accounts: pa.Table, rules: Mapping[str, Rule], *, seconds: float
) -> list[Shelf]:
    """Shelves of kept clips, then of every rule that dropped some; none without the columns."""
    if not set(NEEDED) <= set(accounts.schema.names):
        return []
    chosen: dict[str, list[dict[str, Any]]] = {}
    totals = {row["values"]: row["counts"] for row in _counts(accounts)}
    for outcome in _shown(totals):
        rule = rules.get(outcome.removeprefix("dropped:"))
        chosen[outcome] = _choose(accounts, outcome, rule)
    rows = [row for each in chosen.values() for row in each]
    wanted = [Wanted(row["source_id"], _three_frames(row)) for row in rows]
    originals = iter(read_originals(root, wanted, seconds=seconds))
    shelves = []
    for outcome, each in chosen.items():
        if not each:
            continue
        exhibits = []
        for row in each:
            original = next(originals)
            frames = () if original.frames is None else tuple(original.frames)
            exhibits.append(
                Exhibit(
                    uri=row["uri"],
                    start_seconds=row.get("start_seconds") or 0.0,
                    end_seconds=row.get("end_seconds") or 0.0,
                    caption=row.get("caption") or "",
                    score=row["score"],
                    pictures=tuple(_jpeg(frame) for frame in frames),
                    size=(frames[0].shape[1], frames[0].shape[0]) if frames else (0, 0),
                    reason=original.reason,
                )
            )
        rule = rules.get(outcome.removeprefix("dropped:"))
        shelves.append(
            Shelf(outcome=outcome, rule=rule, num_clips=totals[outcome], exhibits=exhibits)
        )
    return shelves


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "jpeg", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _counts(accounts: pa.Table) -> list[dict[str, Any]]:
    return pc.value_counts(pc.cast(accounts["outcome"], pa.string())).to_pylist()


def _shown(totals: Mapping[str, int]) -> list[str]:
    dropped = sorted(
        (name for name in totals if name.startswith("dropped:")),
        key=lambda name: (-totals[name], name),
    )
    return [*(["kept"] if totals.get("kept") else []), *dropped][:MAX_SHELVES]


def _choose(accounts: pa.Table, outcome: str, rule: Rule | None) -> list[dict[str, Any]]:
    """Rows of one outcome with pictures to show, by the hash that is their id, one a file first."""
    mask = pc.and_(
        pc.equal(pc.cast(accounts["outcome"], pa.string()), outcome),
        pc.greater(accounts["end_pts"], accounts["start_pts"]),
    )
    places = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
    first = places[:: max(1, len(places) // _CONSIDERED)]  # of huge datasets, some of every part
    names = [name for name in (*NEEDED, *OPTIONAL) if name in accounts.schema.names]
    some = accounts.select(names).take(first)
    values = score(accounts, rule.score)[first] if rule else np.full(len(first), np.nan)
    rows: list[dict[str, Any]] = []
    spare: list[dict[str, Any]] = []
    seen: set[str] = set()
    order = pc.sort_indices(some["clip_id"]).to_pylist()
    for index in order:
        if len(rows) == CLIPS_PER_SHELF:
            break
        source_id = some["source_id"][index].as_py()
        is_new = source_id not in seen
        if not is_new and len(spare) >= CLIPS_PER_SHELF:
            continue
        row = {name: some[name][index].as_py() for name in names}
        row["score"] = float(values[index]) if np.isfinite(values[index]) else None
        (rows if is_new else spare).append(row)
        seen.add(source_id)
    rows = (rows + spare)[:CLIPS_PER_SHELF]
    return sorted(rows, key=lambda row: (row["score"] is None, row["score"] or 0.0, row["clip_id"]))


def _three_frames(row: Mapping[str, Any]) -> ClipRequest:
    """The first, middle and last frame of a clip's span, inside its crop; of an image, the one."""
    crop = tuple(row["crop"])
    width = max(round(THUMB_HEIGHT * crop[2] / max(crop[3], 1) / 2) * 2, 2)
    height = THUMB_HEIGHT
    if width > MAX_THUMB_WIDTH:
        width, height = MAX_THUMB_WIDTH, max(round(THUMB_HEIGHT * MAX_THUMB_WIDTH / width), 2)
    seconds = (row.get("end_seconds") or 0.0) - (row.get("start_seconds") or 0.0)
    num_frames = 1 if row["kind"] == "image" or seconds <= 0 else NUM_FRAMES
    return ClipRequest(
        start_pts=row["start_pts"],
        end_pts=row["end_pts"],
        fps=(NUM_FRAMES - 1) / seconds if seconds > 0 else 1.0,
        num_frames=num_frames,
        crop=crop,
        height=height,
        width=width,
    )
