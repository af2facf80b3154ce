"""Charts: small pictures as SVG and HTML text, for pages that load nothing.

Colours are classes (`kept`, `dropped`, `error`), so the page's style decides what they look like.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT, AXIS, LABEL = 420, 130, 18, 13
NUM_BINS = 42
LOG_FROM = 50.0  # times from the median, or from a bound, to the greatest value
SPARK_WIDTH, SPARK_HEIGHT = 180, 28


def bar(*parts: tuple[float, str]) -> str:
    """A horizontal bar as wide as there is room, filled by (share in [0, 1], kind) in turn."""
    filled = "".join(
        f'<i class="{kind}" style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></i>'
        for share, kind in parts
        if share > 0
    )
    return f'<div class="bar">{filled}</div>'


def histogram(
    kept: np.ndarray,
    others: np.ndarray,
    bounds: Sequence[tuple[float, bool, str]] = (),
    unit: str = "",
) -> str:
    """Kept values stacked on the others, and for each bound (value, drops what is below, label).

    The side that a bound drops is shaded. The axis spans the 0.5th to the 99.5th percentile,
    stretched to show the bounds; it is logarithmic when a few large values would press all others
    together. What lies outside is counted in the first and last bin.
    """
    axis = _Axis(np.concatenate([kept, others]), [bound for bound, _, _ in bounds])
    kept_counts, other_counts = axis.count(kept), axis.count(others)
    tallest = max(int((kept_counts + other_counts).max()), 1)
    top = LABEL * len(bounds) + 4
    floor = top + HEIGHT
    shapes = []
    for line, (bound, is_lower, label) in enumerate(sorted(bounds)):
        x = axis.place(bound)
        left, right = (0.0, x) if is_lower else (x, float(WIDTH))
        anchor, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        shapes += [
            f'<rect class="cut" x="{left}" y="{top}" width="{right - left:.1f}" '
            f'height="{HEIGHT}"/>',
            f'<line class="bound" x1="{x}" x2="{x}" y1="{LABEL * line + 3}" y2="{floor}"/>',
            f'<text class="label" x="{x + shift}" y="{LABEL * line + 11}" '
            f'text-anchor="{anchor}">{html.escape(label)}</text>',
        ]
    width = WIDTH / NUM_BINS
    for index, (below, above) in enumerate(zip(other_counts.tolist(), kept_counts.tolist())):
        base, height = HEIGHT * below / tallest, HEIGHT * above / tallest
        shapes.append(_column("dropped", index * width, floor - base, width, base))
        shapes.append(_column("kept", index * width, floor - base - height, width, height))
    shapes.append(f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>')
    for tick in axis.ticks():
        x = axis.place(tick)
        anchor = "start" if x < 8 else "end" if x > WIDTH - 12 else "middle"
        shapes.append(
            f'<text x="{x}" y="{floor + 13}" text-anchor="{anchor}">{tick:,.10g}{unit}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {floor + AXIS}" role="img">{"".join(shapes)}</svg>'


class _Axis:
    """Where values lie from left to right, linear or logarithmic."""

    def __init__(self, values: np.ndarray, bounds: Sequence[float]) -> None:
        low, high = (float(each) for each in np.percentile(values, [0.5, 99.5]))
        low, high = min([low, *bounds]), max([high, *bounds])
        if high <= low:
            low, high = low - 0.5, high + 0.5
        middle = min([float(np.median(values)), *bounds])
        self._is_log = low > 0 and middle > 1e-9 and high > LOG_FROM * middle
        if self._is_log:
            low = max(low, middle / LOG_FROM)
        self._low, self._high = low, high
        self._ends = (math.log10(low), math.log10(high)) if self._is_log else (low, high)

    def count(self, values: np.ndarray) -> np.ndarray:
        """How many values lie in each bin."""
        inside = np.clip(values, self._low, self._high)
        counts, _ = np.histogram(np.log10(inside) if self._is_log else inside, self._edges())
        return counts

    def place(self, value: float) -> float:
        shown = math.log10(value) if self._is_log else value
        first, last = self._ends
        return round((shown - first) / (last - first) * WIDTH, 1)

    def ticks(self) -> list[float]:
        """Some round numbers on it."""
        if self._is_log:
            powers = range(math.floor(self._ends[0]), math.ceil(self._ends[1]) + 1)
            factors = (1, 2, 5) if len(powers) < 4 else (1,)
            every = [m * 10.0**power for power in powers[:: 1 + len(powers) // 8] for m in factors]
            return [round(x, 12) for x in every if self._low <= x <= self._high]
        rough = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self._low / step - 1e-9)
        last = math.floor(self._high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]

    def _edges(self) -> np.ndarray:
        edges = np.linspace(*self._ends, NUM_BINS + 1)
        edges[[0, -1]] = edges[0] - 1e-9, edges[-1] + 1e-9  # rounding must lose no value
        return edges


def sparkline(counts: np.ndarray) -> str:
    """An area of counts in the order given, such as codes by falling use."""
    heights = counts / max(int(counts.max()), 1) * SPARK_HEIGHT
    places = np.linspace(0, len(counts) - 1, min(len(counts), SPARK_WIDTH)).round().astype(int)
    xs = np.linspace(0, SPARK_WIDTH, len(places))
    points = " ".join(f"{x:.1f},{SPARK_HEIGHT - y:.1f}" for x, y in zip(xs, heights[places]))
    outline = f"0,{SPARK_HEIGHT} {points} {SPARK_WIDTH},{SPARK_HEIGHT}"
    return (
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" '
        f'preserveAspectRatio="none"><polygon class="area" points="{outline}"/></svg>'
    )


def _column(kind: str, x: float, y: float, width: float, height: float) -> str:
    if height <= 0:
        return ""
    return (
        f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
        f'height="{height:.1f}"/>'
    )
