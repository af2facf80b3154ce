"""Distributions: many real numbers as one small record that adds up exactly.

    row = empty_distribution()
    add_number(row, 0.25)
    row = distribution_of(np.array([0.25, 3.0, np.nan]))     # the same, of an array at once
    add_distribution(row, other)
    mean(row), quantile(row, 0.95)

A record holds count, least, greatest, the sums of x and x^2 in millionths, and counts in bins with
fixed geometric edges 2**(k/8), 9% wide, so quantiles are known to 5% at any magnitude. All that is
summed is an integer, so the sum is the same bits in whatever order records are added.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

MILLION = 1_000_000
BINS_PER_OCTAVE = 8
_STEPS = [2.0 ** (step / BINS_PER_OCTAVE - 1) for step in range(BINS_PER_OCTAVE)]
"""Where the bins of an octave begin, as mantissas in [0.5, 1)."""
_EXACT = 2.0**42
"""Integers below it are summed as int64, a million at a time; larger ones one by one."""
_PIECE = 1 << 20


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
    """Adds a number below 1e100 in magnitude, rounded to millionths, in place."""
    shown = round(float(value) * MILLION) / MILLION + 0.0
    distribution["count"] += 1
    distribution["min"] = _least(distribution["min"], shown)
    distribution["max"] = _greatest(distribution["max"], shown)
    distribution["sum_millionths"] += round(shown * MILLION)
    distribution["sumsq_millionths"] += round(shown * shown * MILLION)
    name = "0"
    if shown:
        mantissa, exponent = math.frexp(abs(shown))
        step = bisect_right(_STEPS, mantissa) - 1
        name = _bin_name(shown > 0, (exponent - 1) * BINS_PER_OCTAVE + step)
    distribution["bins"][name] = distribution["bins"].get(name, 0) + 1


def distribution_of(values: np.ndarray) -> dict[str, Any]:
    """The distribution of all finite values at once: what `add_number` gives one by one."""
    values = np.asarray(values, dtype=np.float64)
    shown = np.rint(values[np.isfinite(values)] * MILLION) / MILLION + 0.0
    result = empty_distribution()
    if not len(shown):
        return result
    return result | {
        "count": len(shown),
        "min": float(shown.min()),
        "max": float(shown.max()),
        "sum_millionths": _exact_sum(shown * MILLION),
        "sumsq_millionths": _exact_sum(shown * shown * MILLION),
        "bins": _count_bins(shown),
    }


def add_distribution(total: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Adds another record, in place."""
    for name in ("count", "sum_millionths", "sumsq_millionths"):
        total[name] += other[name]
    total["min"] = _least(total["min"], other["min"])
    total["max"] = _greatest(total["max"], other["max"])
    mine = total["bins"]
    for name, count in other["bins"].items():
        mine[name] = mine.get(name, 0) + count


def mean(distribution: Mapping[str, Any]) -> float | None:
    """The mean, None of nothing."""
    if not distribution["count"]:
        return None
    return distribution["sum_millionths"] / MILLION / distribution["count"]


def deviation(distribution: Mapping[str, Any]) -> float | None:
    """The standard deviation (of the population), within 0.001, None of nothing.

    The sum of x^2 is in millionths, so that less is not known; that it is at most half of the range
    is known as well.
    """
    if not distribution["count"]:
        return None
    square = distribution["sumsq_millionths"] / MILLION / distribution["count"]
    spread = math.sqrt(max(square - (mean(distribution) or 0.0) ** 2, 0.0))
    return min(spread, (distribution["max"] - distribution["min"]) / 2)


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


def describe(distribution: Mapping[str, Any]) -> dict[str, Any]:
    """A distribution in eight numbers; the quantiles are within 5%."""
    return {
        "count": distribution["count"],
        "mean": mean(distribution),
        "deviation": deviation(distribution),
        "min": distribution["min"],
        "p5": quantile(distribution, 0.05),
        "p50": quantile(distribution, 0.5),
        "p95": quantile(distribution, 0.95),
        "max": distribution["max"],
    }


def _count_bins(shown: np.ndarray) -> dict[str, int]:
    """How many values lie in each bin."""
    counts: dict[str, int] = {}
    for positive in (True, False):
        magnitudes = shown[shown > 0] if positive else -shown[shown < 0]
        mantissas, exponents = np.frexp(magnitudes)
        steps = np.searchsorted(_STEPS, mantissas, side="right") - 1
        indices = (exponents.astype(np.int64) - 1) * BINS_PER_OCTAVE + steps
        found, numbers = np.unique(indices, return_counts=True)
        counts |= {_bin_name(positive, i): n for i, n in zip(found.tolist(), numbers.tolist())}
    zeros = int((shown == 0).sum())
    return counts | ({"0": zeros} if zeros else {})


def _bin_name(positive: bool, index: int) -> str:
    return f"{'+' if positive else '-'}2^{index}/{BINS_PER_OCTAVE}"


def _edges(name: str) -> tuple[float, float]:
    if name == "0":
        return 0.0, 0.0
    index = int(name[3:].partition("/")[0])
    low, high = 2.0 ** (index / BINS_PER_OCTAVE), 2.0 ** ((index + 1) / BINS_PER_OCTAVE)
    return (low, high) if name[0] == "+" else (-high, -low)


def _exact_sum(values: np.ndarray) -> int:
    """The sum of the values, each rounded to an integer, without loss."""
    whole = np.rint(values)
    is_small = np.abs(whole) < _EXACT
    small = whole[is_small].astype(np.int64)
    total = sum(int(small[at : at + _PIECE].sum()) for at in range(0, len(small), _PIECE))
    return total + sum(int(value) for value in whole[~is_small].tolist())


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _greatest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
