"""Charts: small SVG pictures as text, for pages that load nothing.

Colours are classes (`kept`, `dropped`, `error`), so the page's style decides what they look like.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

BAR_WIDTH, BAR_HEIGHT = 180, 10
CHART_WIDTH, CHART_HEIGHT, AXIS_HEIGHT, LEGEND_HEIGHT = 360, 120, 16, 14
NUM_BINS = 40


def bar(share: float, kind: str) -> str:
    """A horizontal bar filled to `share` in [0, 1]."""
    filled = round(BAR_WIDTH * min(max(share, 0.0), 1.0), 1)
    return (
        f'<svg width="{BAR_WIDTH}" height="{BAR_HEIGHT}">'
        f'<rect class="track" width="{BAR_WIDTH}" height="{BAR_HEIGHT}" rx="3"/>'
        f'<rect class="{kind}" width="{filled}" height="{BAR_HEIGHT}" rx="3"/></svg>'
    )


def histogram(
    kept: np.ndarray, others: np.ndarray, bounds: Sequence[tuple[float, str]] = ()
) -> str:
    """Kept values stacked on the others, with a dashed line and a legend for each bound.

    The axis spans the 0.5th to the 99.5th percentile, stretched to show the bounds; what lies
    outside is counted in the first and last bin.
    """
    values = np.concatenate([kept, others])
    low, high = (float(each) for each in np.percentile(values, [0.5, 99.5]))
    low = min([low, *(bound for bound, _ in bounds)])
    high = max([high, *(bound for bound, _ in bounds)])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, NUM_BINS + 1)
    kept_counts, _ = np.histogram(np.clip(kept, low, high), edges)
    other_counts, _ = np.histogram(np.clip(others, low, high), edges)
    tallest = max(int((kept_counts + other_counts).max()), 1)
    width = CHART_WIDTH / NUM_BINS
    shapes = []
    for index, (below, above) in enumerate(zip(other_counts.tolist(), kept_counts.tolist())):
        base = CHART_HEIGHT * below / tallest
        top = CHART_HEIGHT * above / tallest
        x = index * width
        shapes.append(_column("dropped", x, CHART_HEIGHT - base, width, base))
        shapes.append(_column("kept", x, CHART_HEIGHT - base - top, width, top))
    height = CHART_HEIGHT + AXIS_HEIGHT + LEGEND_HEIGHT * len(bounds)
    for index, (bound, label) in enumerate(bounds):
        x = round((bound - low) / (high - low) * CHART_WIDTH, 1)
        y = CHART_HEIGHT + AXIS_HEIGHT + LEGEND_HEIGHT * index + 10
        shapes.append(f'<line class="bound" x1="{x}" x2="{x}" y1="0" y2="{CHART_HEIGHT}"/>')
        shapes.append(f'<text x="0" y="{y}">{html.escape(label)}</text>')
    axis = CHART_HEIGHT + 11
    shapes += [
        f'<line class="axis" x1="0" x2="{CHART_WIDTH}" y1="{CHART_HEIGHT}" y2="{CHART_HEIGHT}"/>',
        f'<text x="0" y="{axis}">{low:.4g}</text>',
        f'<text x="{CHART_WIDTH}" y="{axis}" text-anchor="end">{high:.4g}</text>',
    ]
    return f'<svg viewBox="0 0 {CHART_WIDTH} {height}">{"".join(shapes)}</svg>'


def sparkline(counts: np.ndarray) -> str:
    """An area of counts in the order given, such as codes by falling use."""
    heights = counts / max(int(counts.max()), 1) * BAR_HEIGHT * 2
    places = np.linspace(0, len(counts) - 1, min(len(counts), BAR_WIDTH)).round().astype(int)
    xs = np.linspace(0, BAR_WIDTH, len(places))
    points = " ".join(f"{x:.1f},{2 * BAR_HEIGHT - y:.1f}" for x, y in zip(xs, heights[places]))
    outline = f"0,{2 * BAR_HEIGHT} {points} {BAR_WIDTH},{2 * BAR_HEIGHT}"
    return (
        f'<svg width="{BAR_WIDTH}" height="{2 * BAR_HEIGHT}">'
        f'<polygon class="area" points="{outline}"/></svg>'
    )


def _column(kind: str, x: float, y: float, width: float, height: float) -> str:
    if height <= 0:
        return ""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width - 0.8:.1f}" '
        f'height="{height:.1f}"/>'
    )
