"""Outliers: the clips at both ends of a score, and the shards that stand apart from the others.

    for each in outlying_clips("runs/demo/data", "motion", count=20):
        each.uri, each.start_seconds, each.value, each.z

A robust z-score is the distance from the median in units of 1.4826 median absolute deviations:
the ordinary one for a normal distribution, but one wild clip does not hide another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspection.accounts import read_accounts, score_columns
from pipeline.inspection.funnel import score
from pipeline.storage import open_storage
from tokenizer.settings import UserError

MIN_SHARD_Z = 3.5
"""From here on a shard is called an outlier (Iglewicz and Hoaglin 1993)."""
MIN_SHARD_SHIFT = 0.25
"""... if it is also this far off, in deviations of the clips' score or in shares of the number."""
MIN_SHARDS = 5
"""Of fewer, one always stands apart."""
FACTS = ("duration_seconds", "num_frames", "width", "height", "caption_characters")


@dataclass(frozen=True, kw_only=True)
class OutlyingClip:
    """A clip at one end of a score."""

    key: str
    uri: str
    start_seconds: float
    end_seconds: float
    outcome: str
    caption: str
    value: float
    z: float


@dataclass(frozen=True, kw_only=True)
class OutlyingShard:
    """A shard of which one figure lies far from those of the other shards."""

    shard: str
    figure: str
    value: float
    median: float
    z: float


def outlying_clips(
    root: str | Path, by: str, count: int = 20, *, kept_only: bool = False
) -> list[OutlyingClip]:
    """The `count` clips farthest from the median, farthest first; UserError if no such score."""
    accounts = read_accounts(open_storage(root))
    values = _values(accounts, by, root)
    usable = np.isfinite(values)
    if kept_only:
        usable &= _is_kept(accounts)
    places = np.flatnonzero(usable)
    if not len(places):
        raise UserError(f"{root}: no clip has the score {by!r}")
    distances = robust_z(values[places])
    farthest = places[np.argsort(-np.abs(distances), kind="stable")[: max(count, 0)]]
    z_of = dict(zip(places.tolist(), distances.tolist()))
    rows = accounts.take(farthest).to_pylist()
    return [
        OutlyingClip(
            key=str(row.get("key") or ""),
            uri=str(row.get("uri") or ""),
            start_seconds=float(row.get("start_seconds") or 0.0),
            end_seconds=float(row.get("end_seconds") or 0.0),
            outcome=str(row.get("outcome") or ""),
            caption=str(row.get("caption") or ""),
            value=float(values[place]),
            z=z_of[place],
        )
        for place, row in zip(farthest.tolist(), rows)
    ]


def outlying_shards(root: str | Path) -> list[OutlyingShard]:
    """Shards unlike those of the same bucket in size or mean score, farthest first."""
    accounts = read_accounts(open_storage(root))
    if not {"shard", "bucket"} <= set(accounts.schema.names):
        return []
    kept = accounts.filter(pa.array(_is_kept(accounts)))
    found = []
    for bucket in sorted(pc.unique(kept["bucket"]).to_pylist()):
        found += _apart(kept.filter(pc.equal(kept["bucket"], bucket)), root)
    return sorted(found, key=lambda each: (-abs(each.z), each.shard, each.figure))


def _apart(kept: pa.Table, root: str | Path) -> list[OutlyingShard]:
    """The shards that stand apart, of those of one bucket."""
    shards = kept["shard"].combine_chunks().dictionary_encode()
    names, codes = shards.dictionary.to_pylist(), shards.indices.to_numpy()
    numbers = np.bincount(codes, minlength=len(names)).astype(np.float64)
    figures = {"samples": (numbers, float(np.median(numbers)))}
    for name in (*score_columns(kept), "duration_seconds", "caption_characters"):
        values = _values(kept, name, root)
        known = np.isfinite(values)
        counts = np.bincount(codes[known], minlength=len(names))
        sums = np.bincount(codes[known], weights=values[known], minlength=len(names))
        none = np.full(len(names), np.nan)
        means = np.divide(sums, counts, out=none, where=counts > 0)
        figures[f"mean {name}"] = means, float(np.std(values[known])) if known.any() else 0.0
    found = []
    for figure, (values, scale) in figures.items():
        known = np.isfinite(values)
        if known.sum() < MIN_SHARDS:
            continue
        distances = np.zeros(len(names))
        distances[known] = robust_z(values[known])
        is_far = np.abs(values - np.median(values[known])) >= MIN_SHARD_SHIFT * scale
        for place in np.flatnonzero((np.abs(distances) >= MIN_SHARD_Z) & is_far).tolist():
            found.append(
                OutlyingShard(
                    shard=names[place],
                    figure=figure,
                    value=float(values[place]),
                    median=float(np.median(values[known])),
                    z=float(distances[place]),
                )
            )
    return found


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distances from the median; where half of the values hardly differ, in mean deviations."""
    away = values - np.median(values)
    far = np.abs(away)
    spread = 1.4826 * float(np.median(far))
    if spread <= np.finfo(float).eps * float(np.max(far)):
        spread = 1.2533 * float(np.mean(far))
    return away / spread if spread else np.zeros(len(values))


def _values(accounts: pa.Table, name: str, root: Any) -> np.ndarray:
    if name == "caption_characters":
        lengths = pc.utf8_length(accounts["caption"].cast(pa.string()))
        return lengths.to_numpy(zero_copy_only=False).astype(np.float64)
    known: Sequence[str] = [*score_columns(accounts), *FACTS]
    if name not in known:
        raise UserError(f"{root}: no score {name!r}; there are {', '.join(known)}")
    values = score(accounts, name)
    return np.where(values == 0, np.nan, values) if name in FACTS else values


def _is_kept(accounts: pa.Table) -> np.ndarray:
    kept = pc.equal(accounts["outcome"].cast(pa.string()), "kept")
    return kept.to_numpy(zero_copy_only=False)
