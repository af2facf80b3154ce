"""Statistics: what is inside a unit of work, as plain JSON that adds up.

Every commit carries one such record, and a dataset's statistics are the sum of its commits': no
shard is read again, however many there are. All that is summed is an integer (a real number is
counted in millionths), so the sum is the same bits in whatever order the records are added.

    statistics = empty_statistics()
    add_sample(statistics, metadata, codes, schedule.scale_of_token, codebook_size=4096)
    add_outcome(statistics, "dropped:too_static")
    total = merge(statistics, other)
    code_usage(total)[0].perplexity

A real number is kept as a *distribution*: count, least, greatest, sums of x and x^2, and counts in
bins with fixed geometric edges 2**(k/8), 9% wide, so quantiles are known to 5% at any magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Statistics = dict[str, Any]

VERSION = 1
BINS_PER_OCTAVE = 8
MILLION = 1_000_000
LARGEST_COUNTED_CODEBOOK = 65_536
"""Use of larger codebooks is not counted: a histogram of 2**18 codes would dwarf the shard."""

GROUPED_BY = ("label", "bucket", "split")
NO_VALUE = "(none)"


def empty_statistics() -> Statistics:
    """The record of nothing, the neutral element of `merge`."""
    return {
        "version": VERSION,
        "outcomes": {},
        "samples": 0,
        "frames": 0,
        "tokens": 0,
        "bytes": 0,
        "seconds": empty_distribution(),
        "caption_characters": empty_distribution(),
        "scores": {},
        "missing_scores": {},
        "resolutions": {},
        "captioned_by": {},
        "by": {name: {} for name in GROUPED_BY},
        "codes": {},
    }


def add_outcome(statistics: Statistics, outcome: str, count: int = 1) -> None:
    """Counts a clip that ended as `kept`, `dropped:<rule>` or `error:<class>`."""
    if outcome != "kept" and not outcome.startswith(("dropped:", "error:")):
        raise ValueError(f"outcome {outcome!r} is not kept, dropped:<rule> or error:<class>")
    _count(statistics["outcomes"], outcome, count)


def add_sample(
    statistics: Statistics,
    metadata: Mapping[str, Any],
    codes: np.ndarray | None = None,
    scale_of_token: np.ndarray | None = None,
    codebook_size: int | None = None,
    size_bytes: int = 0,
) -> None:
    """Adds a sample, in place: its metadata, and its codes (1-D, in [0, codebook_size)).

    `scale_of_token` [num_tokens] says which scale each code belongs to (default: one scale). Keys
    that the metadata lacks are not counted; a score of None or NaN counts as missing.
    """
    num_tokens = 0 if codes is None else len(codes)
    num_frames = int(metadata.get("num_frames") or 0)
    seconds = _duration(metadata)
    statistics["samples"] += 1
    statistics["frames"] += num_frames
    statistics["tokens"] += num_tokens
    statistics["bytes"] += size_bytes
    if seconds is not None:
        add_number(statistics["seconds"], seconds)
    if metadata.get("caption"):
        add_number(statistics["caption_characters"], len(metadata["caption"]))
        _count(statistics["captioned_by"], str(metadata.get("caption_by") or NO_VALUE))
    for name, score in (metadata.get("scores") or {}).items():
        if score is None or not math.isfinite(score):
            _count(statistics["missing_scores"], name)
        else:
            add_number(statistics["scores"].setdefault(name, empty_distribution()), score)
    if metadata.get("height") and metadata.get("width"):
        _count(statistics["resolutions"], f"{metadata['width']}x{metadata['height']}")
    for name in GROUPED_BY:
        value = metadata.get(name)
        group = statistics["by"][name].setdefault(NO_VALUE if value is None else str(value), {})
        _count(group, "samples")
        _count(group, "frames", num_frames)
        _count(group, "tokens", num_tokens)
        _count(group, "milliseconds", round(1000 * (seconds or 0.0)))
    if codes is not None and codebook_size is not None:
        bucket = str(metadata.get("bucket") or NO_VALUE)
        _add_codes(statistics["codes"], bucket, codes, scale_of_token, codebook_size)


def merge(*records: Mapping[str, Any]) -> Statistics:
    """The statistics of everything that the records describe; the records stay as they are.

    Raises ValueError when a record has another version, or codes of another codebook.
    """
    total = empty_statistics()
    for record in records:
        if record.get("version") != VERSION:
            raise ValueError(f"statistics version {record.get('version')!r} is not {VERSION}")
        _add_record(total, record)
    return total


def outcome_totals(statistics: Mapping[str, Any]) -> dict[str, int]:
    """Clips that came in, and how they ended: n_in = n_kept + n_dropped + n_error."""
    totals = {"n_in": 0, "n_kept": 0, "n_dropped": 0, "n_error": 0}
    for outcome, count in statistics["outcomes"].items():
        totals["n_in"] += count
        totals[f"n_{outcome.partition(':')[0]}"] += count
    return totals


@dataclass(frozen=True)
class ScaleUsage:
    """How the codes of one scale of one bucket use the codebook."""

    bucket: str
    scale: int
    num_tokens: int
    codebook_size: int
    num_used: int
    entropy_bits: float

    @property
    def perplexity(self) -> float:
        """The number of equally likely codes that would have this entropy."""
        return 2.0**self.entropy_bits

    @property
    def num_dead(self) -> int:
        """Codes that no sample of this scale uses."""
        return self.codebook_size - self.num_used


def code_usage(statistics: Mapping[str, Any]) -> list[ScaleUsage]:
    """Codebook use per bucket and scale, in order."""
    return [
        _usage(bucket, scale, np.array(histogram, dtype=np.int64))
        for bucket, histograms in sorted(statistics["codes"].items())
        for scale, histogram in enumerate(histograms)
    ]


def overall_usage(statistics: Mapping[str, Any]) -> ScaleUsage | None:
    """Codebook use of all buckets and scales together; None when no codes were counted."""
    histograms = [row for rows in statistics["codes"].values() for row in rows]
    if not histograms:
        return None
    return _usage("all", -1, np.sum(np.array(histograms, dtype=np.int64), axis=0))


def empty_distribution() -> dict[str, Any]:
    """The distribution of no numbers."""
    return {
        "count": 0,
        "min": None,
        "max": None,
        "sum_millionths": 0,
        "sumsq_millionths": 0,
        "bins": {},
    }


def add_number(distribution: dict[str, Any], value: float) -> None:
    """Adds a finite number, in place."""
    shown = round(float(value), 6)
    distribution["count"] += 1
    distribution["min"] = _least(distribution["min"], shown)
    distribution["max"] = _greatest(distribution["max"], shown)
    distribution["sum_millionths"] += round(shown * MILLION)
    distribution["sumsq_millionths"] += round(shown * shown * MILLION)
    _count(distribution["bins"], _bin_of(shown))


def distribution_of(values: np.ndarray) -> dict[str, Any]:
    """The distribution of all finite values at once: what `add_number` gives one by one."""
    values = np.asarray(values, dtype=np.float64)
    shown = np.round(values[np.isfinite(values)], 6)
    result = empty_distribution()
    if not len(shown):
        return result
    uniques, counts = np.unique(shown, return_counts=True)
    for value, count in zip(uniques.tolist(), counts.tolist()):
        result["sum_millionths"] += count * round(value * MILLION)
        result["sumsq_millionths"] += count * round(value * value * MILLION)
        _count(result["bins"], _bin_of(value), count)
    return result | {
        "count": len(shown),
        "min": float(uniques[0]),
        "max": float(uniques[-1]),
    }


def mean(distribution: Mapping[str, Any]) -> float | None:
    """The mean, None of nothing."""
    if not distribution["count"]:
        return None
    return distribution["sum_millionths"] / MILLION / distribution["count"]


def deviation(distribution: Mapping[str, Any]) -> float | None:
    """The standard deviation (of the population), None of nothing."""
    if not distribution["count"]:
        return None
    square = distribution["sumsq_millionths"] / MILLION / distribution["count"]
    return math.sqrt(max(square - (mean(distribution) or 0.0) ** 2, 0.0))


def quantile(distribution: Mapping[str, Any], share: float) -> float | None:
    """The number below which `share` in [0, 1] of them lie, within 5%; None of nothing."""
    if not distribution["count"]:
        return None
    wanted = share * (distribution["count"] - 1)
    seen = 0
    for low, high, count in bins(distribution):
        seen += count
        if seen > wanted:
            middle = (low + high) / 2
            return min(max(middle, distribution["min"]), distribution["max"])
    return distribution["max"]


def bins(distribution: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """The occupied bins (low, high, count), ascending."""
    edges = [(*_edges(name), count) for name, count in distribution["bins"].items()]
    return sorted(edges)


def _bin_of(value: float) -> str:
    if value == 0:
        return "0"
    index = math.floor(math.log2(abs(value)) * BINS_PER_OCTAVE)
    return f"{'+' if value > 0 else '-'}2^{index}/{BINS_PER_OCTAVE}"


def _edges(name: str) -> tuple[float, float]:
    if name == "0":
        return 0.0, 0.0
    index = int(name[3:].partition("/")[0])
    low, high = 2.0 ** (index / BINS_PER_OCTAVE), 2.0 ** ((index + 1) / BINS_PER_OCTAVE)
    return (low, high) if name[0] == "+" else (-high, -low)


def _duration(metadata: Mapping[str, Any]) -> float | None:
    start, end = metadata.get("start_seconds"), metadata.get("end_seconds")
    if start is not None and end is not None:
        return end - start
    if metadata.get("num_frames") and metadata.get("fps"):
        return metadata["num_frames"] / metadata["fps"]
    return None


def _add_codes(
    table: dict[str, list[list[int]]],
    bucket: str,
    codes: np.ndarray,
    scale_of_token: np.ndarray | None,
    codebook_size: int,
) -> None:
    if codebook_size > LARGEST_COUNTED_CODEBOOK:
        return
    if scale_of_token is None:
        scale_of_token = np.zeros(len(codes), dtype=np.int64)
    if len(scale_of_token) != len(codes):
        raise ValueError(f"{len(codes)} codes, but {len(scale_of_token)} have a scale")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise ValueError(f"a code lies outside [0, {codebook_size})")
    histograms = table.setdefault(bucket, [])
    num_scales = int(scale_of_token.max()) + 1 if len(codes) else 0
    while len(histograms) < num_scales:
        histograms.append([0] * codebook_size)
    for scale, code in zip(scale_of_token.tolist(), codes.tolist()):
        histograms[scale][code] += 1


def _usage(bucket: str, scale: int, histogram: np.ndarray) -> ScaleUsage:
    total = int(histogram.sum())
    used = histogram[histogram > 0]
    shares = used / max(total, 1)
    entropy = float(-(shares * np.log2(shares)).sum()) if total else 0.0
    return ScaleUsage(bucket, scale, total, len(histogram), len(used), abs(entropy))


def _add_record(total: Statistics, record: Mapping[str, Any]) -> None:
    for name in ("samples", "frames", "tokens", "bytes"):
        total[name] += record[name]
    for name in ("outcomes", "missing_scores", "resolutions", "captioned_by"):
        _add_counts(total[name], record[name])
    for name in ("seconds", "caption_characters"):
        _add_distribution(total[name], record[name])
    for name, distribution in record["scores"].items():
        _add_distribution(total["scores"].setdefault(name, empty_distribution()), distribution)
    for name, groups in record["by"].items():
        for value, counts in groups.items():
            _add_counts(total["by"].setdefault(name, {}).setdefault(value, {}), counts)
    for bucket, histograms in record["codes"].items():
        _add_histograms(total["codes"], bucket, histograms)


def _add_histograms(table: dict[str, list], bucket: str, histograms: list[list[int]]) -> None:
    rows = table.setdefault(bucket, [])
    for scale, histogram in enumerate(histograms):
        if scale == len(rows):
            rows.append([0] * len(histogram))
        if len(rows[scale]) != len(histogram):
            sizes = f"{len(rows[scale])} and {len(histogram)}"
            raise ValueError(f"codes of codebooks of {sizes} entries do not add up")
        rows[scale] = [ours + theirs for ours, theirs in zip(rows[scale], histogram)]


def _add_distribution(total: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name in ("count", "sum_millionths", "sumsq_millionths"):
        total[name] += other[name]
    total["min"] = _least(total["min"], other["min"])
    total["max"] = _greatest(total["max"], other["max"])
    _add_counts(total["bins"], other["bins"])


def _add_counts(total: dict[str, int], other: Mapping[str, int]) -> None:
    for name, count in other.items():
        _count(total, name, count)


def _count(table: dict[str, int], name: str, count: int = 1) -> None:
    table[name] = table.get(name, 0) + count


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _greatest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
