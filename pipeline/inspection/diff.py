"""The difference between two datasets: settings, clips, captions, codes, scores, the codebook.

    difference = diff_datasets("runs/before", "runs/after")
    difference.clips["only in B"], difference.settings, difference.kept["motion"].drift

A clip is the same clip when its id is: source, span, crop and view. Its codes are the same when
their code key is; manifests without code keys are compared by the hashes of their shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.distribution import deviation, mean, quantile
from pipeline.inspection.accounts import read_accounts
from pipeline.inspection.summary import distributions, summarize
from pipeline.statistics import Statistics, code_counts
from pipeline.storage import Storage, open_storage
from tokenizer.settings import UserError, parse_yaml

CONFIG_FILE = "config.yaml"
MAX_EXAMPLES = 20
_COLUMNS = ("clip_id", "outcome", "caption", "code_key", "uri", "key")
_NOT_SETTINGS = ("out", "reuse", "executor", "ray_address", "num_cpus")


@dataclass(frozen=True)
class Drift:
    """How a distribution moved: means and medians, and `drift` in deviations of A."""

    mean_a: float | None
    mean_b: float | None
    median_a: float | None
    median_b: float | None
    drift: float | None


@dataclass(frozen=True)
class CodebookDrift:
    """How the use of the codes of one bucket and scale moved.

    `distance` is the total variation between both distributions: 0 equal, 1 disjoint.
    """

    bucket: str
    scale: int
    used_a: int
    used_b: int
    distance: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """All that differs; empty parts are equal."""

    settings: dict[str, tuple[Any, Any]]
    outcomes: dict[str, tuple[int, int]]
    """Clips by outcome, of those outcomes whose counts differ."""
    clips: dict[str, int]
    """How many clips: "in both", "only in A", ..., "changed outcome", ..."""
    examples: dict[str, list[str]]
    """Some keys of clips for each kind of change."""
    kept: dict[str, Drift]
    """Of the samples in the shards: durations, captions, scores."""
    considered: dict[str, Drift]
    """Of every clip that has the score, kept or not."""
    codebook: list[CodebookDrift]
    totals: dict[str, tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        changed = sum(number for name, number in self.clips.items() if name != "in both")
        return not (changed or self.settings or self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """What `tessera diff --json` prints."""
        return asdict(self) | {"equal": self.is_empty}


def diff_datasets(a: str | Path, b: str | Path) -> Difference:
    """Compares two dataset folders; UserError when one is none."""
    stores = open_storage(a), open_storage(b)
    first, second = summarize(a), summarize(b)
    clips, examples = _clips(*(_accounts(store) for store in stores))
    settings = [_flat(_settings(store)) for store in stores]
    names = sorted(set(settings[0]) | set(settings[1]))
    return Difference(
        settings={
            name: (settings[0].get(name), settings[1].get(name))
            for name in names
            if settings[0].get(name) != settings[1].get(name)
            and name.partition(".")[0] not in _NOT_SETTINGS
        },
        outcomes={
            name: (first.outcomes.get(name, 0), second.outcomes.get(name, 0))
            for name in sorted({*first.outcomes, *second.outcomes})
            if first.outcomes.get(name, 0) != second.outcomes.get(name, 0)
        },
        clips=clips,
        examples=examples,
        kept=_drifts(distributions(first.statistics), distributions(second.statistics)),
        considered=_drifts(first.considered, second.considered),
        codebook=_codebook(first.statistics, second.statistics),
        totals={
            name: (first.statistics[name], second.statistics[name])
            for name in ("samples", "frames", "tokens", "bytes")
        },
    )


def _accounts(storage: Storage) -> pa.Table:
    """The columns that are compared; those that are missing are empty."""
    table = read_accounts(storage, _COLUMNS)
    if "clip_id" not in table.schema.names:
        raise UserError(f"{storage.root}: the accounts have no column clip_id")
    for name in set(_COLUMNS) - set(table.schema.names):
        table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table.select(_COLUMNS)


def _clips(a: pa.Table, b: pa.Table) -> tuple[dict[str, int], dict[str, list[str]]]:
    """(numbers, examples) of every kind of change."""
    both = a.join(b, keys="clip_id", join_type="inner", right_suffix="_b").sort_by("clip_id")
    only_a = a.join(b, keys="clip_id", join_type="left anti").sort_by("clip_id")
    only_b = b.join(a, keys="clip_id", join_type="left anti").sort_by("clip_id")
    kept = pc.and_(pc.equal(both["outcome"], "kept"), pc.equal(both["outcome_b"], "kept"))
    known = pc.and_(_has(both["code_key"]), _has(both["code_key_b"]))
    found = {
        "in both": both,
        "only in A": only_a,
        "only in B": only_b,
        "changed outcome": both.filter(_differ(both, "outcome")),
        "changed caption": both.filter(_differ(both, "caption")),
        "changed codes": both.filter(pc.and_(pc.and_(kept, known), _differ(both, "code_key"))),
    }
    examples = {
        name: [_example(row, name) for row in rows.slice(0, MAX_EXAMPLES).to_pylist()]
        for name, rows in found.items()
        if name != "in both" and len(rows)
    }
    return {name: len(rows) for name, rows in found.items()}, examples


def _example(row: Mapping[str, Any], kind: str) -> str:
    column = kind.rpartition(" ")[2]
    change = ""
    if kind.startswith("changed") and column != "codes":
        change = f": {row[column]} -> {row[f'{column}_b']}"
    return f"{row['key'] or row['clip_id']} ({row['uri']}){change}"


def _has(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.greater(pc.utf8_length(pc.fill_null(values, "")), 0)


def _differ(both: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.not_equal(pc.fill_null(both[name], ""), pc.fill_null(both[f"{name}_b"], ""))


def _drifts(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Drift]:
    """Of every score that either has."""
    result = {}
    for name in sorted({*a, *b}):
        first, second = (each.get(name, {"count": 0}) for each in (a, b))
        mean_a, mean_b, spread = mean(first), mean(second), deviation(first)
        is_known = mean_a is not None and mean_b is not None and spread
        result[name] = Drift(
            mean_a=mean_a,
            mean_b=mean_b,
            median_a=quantile(first, 0.5),
            median_b=quantile(second, 0.5),
            drift=((mean_b or 0.0) - (mean_a or 0.0)) / spread if is_known and spread else None,
        )
    return result


def _codebook(a: Statistics, b: Statistics) -> list[CodebookDrift]:
    """Of every bucket and scale that both have, where the codebooks are of one size."""
    first, second = code_counts(a), code_counts(b)
    drifts = []
    for bucket in sorted(set(first) & set(second)):
        counts_a, counts_b = first[bucket].counts, second[bucket].counts
        if counts_a is None or counts_b is None or counts_a.shape[1] != counts_b.shape[1]:
            continue
        for scale, (ours, theirs) in enumerate(zip(counts_a, counts_b)):
            shares = [row / max(int(row.sum()), 1) for row in (ours, theirs)]
            drifts.append(
                CodebookDrift(
                    bucket=bucket,
                    scale=scale,
                    used_a=int((ours > 0).sum()),
                    used_b=int((theirs > 0).sum()),
                    distance=float(np.abs(shares[0] - shares[1]).sum() / 2),
                )
            )
    return drifts


def _settings(storage: Storage) -> Any:
    try:
        return parse_yaml(storage.read(CONFIG_FILE))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(values, dict):
        return {prefix: values} if prefix else {}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
