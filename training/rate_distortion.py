"""Rate-distortion curves: how much picture a tokenizer gives for how many bits.

    curve = Curve("multi-scale", points)             # a point per scale that is decoded
    draw_curves([curve, other], "rate_distortion.png", title="Held-out clips")

Bits are *nominal* (log2 of the codebook per code) or *effective*: the entropy of the codes by
scale (`tokenizer.health`), which is what an ideal coder without context would need. A codebook that
is not used has many nominal bits and few effective ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPER, INK, FAINT, GRID = "#262834", "#e8eaf2", "#969bac", "#3a3d4d"
"""The colours of `pictures`, as matplotlib writes them, and that of grid lines."""
COLORS = ("#ffb454", "#59c2ff", "#b8cc52", "#f07178", "#d2a6ff", "#95e6cb")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What decoding the first `num_scales` scales of each pyramid gives; means over clips."""

    num_scales: int
    nominal_bits_per_pixel: float
    effective_bits_per_pixel: float
    psnr: float
    ssim: float | None
    psnr_spread: float = 0.0
    """Standard deviation over repetitions, which a bar shows."""
    ssim_spread: float = 0.0


@dataclass(frozen=True)
class Curve:
    """The points of one tokenizer, coarse to fine."""

    name: str
    points: tuple[Point, ...]


def draw_curves(
    curves: Sequence[Curve],
    path: str | Path,
    title: str,
    subtitle: str = "",
    flat_psnr: float | None = None,
) -> bool:
    """Writes the plot as PNG: PSNR and, where there is one, SSIM over bits per pixel.

    Filled marks stand at effective bits, hollow ones at nominal bits; `flat_psnr`, what the clips'
    mean colours have, is a dashed line. False when matplotlib is not installed.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    panels = ["psnr"]
    if any(point.ssim is not None for curve in curves for point in curve.points):
        panels.append("ssim")
    figure = figures.Figure(figsize=(1 + 5.6 * len(panels), 5.4), dpi=120, facecolor=PAPER)
    figure.suptitle(title, x=0.03, y=0.965, ha="left", color=INK, fontsize=16, fontweight="bold")
    figure.text(0.03, 0.885, subtitle, ha="left", color=FAINT, fontsize=10)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        _style(axes)
        for curve, color in zip(curves, COLORS * len(curves)):
            _draw(axes, curve, panel, color)
        axes.set_xlabel("bits per pixel", color=FAINT)
        axes.set_title("PSNR, dB" if panel == "psnr" else "SSIM", color=INK, loc="left")
        if panel == "psnr" and flat_psnr is not None:
            axes.axhline(flat_psnr, color=FAINT, linestyle=(0, (4, 4)), linewidth=1)
            where = axes.get_yaxis_transform()
            axes.text(
                0.99, flat_psnr, "one flat colour", transform=where, color=FAINT, fontsize=8,
                ha="right", va="bottom",
            )  # fmt: skip
        axes.margins(x=0.08, y=0.12)
        axes.set_xlim(left=0)
    _legend(figure)
    figure.subplots_adjust(left=0.07, right=0.975, top=0.78, bottom=0.12, wspace=0.16)
    figure.savefig(path, facecolor=PAPER, metadata={"Software": "tessera"})
    return True


def _draw(axes: Any, curve: Curve, panel: str, color: str) -> None:
    points = [each for each in curve.points if getattr(each, panel) is not None]
    values = [getattr(each, panel) for each in points]
    spreads = [getattr(each, f"{panel}_spread") for each in points]
    nominal = [each.nominal_bits_per_pixel for each in points]
    effective = [each.effective_bits_per_pixel for each in points]
    axes.plot(nominal, values, "o", color=color, markerfacecolor=PAPER, alpha=0.75, markersize=6)
    for index, value in enumerate(values):
        axes.plot(
            [effective[index], nominal[index]], [value, value], color=color, alpha=0.35, linewidth=1
        )
    axes.errorbar(
        effective, values, yerr=spreads if any(spreads) else None, color=color, marker="o",
        markersize=6, linewidth=2, capsize=3, label=curve.name,
    )  # fmt: skip
    if len(points) <= 12:
        for point, x, y in zip(points, effective, values):
            axes.annotate(
                str(point.num_scales), (x, y), (-5, 7), textcoords="offset points", color=color,
                fontsize=8, ha="right",
            )  # fmt: skip


def _style(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _legend(figure: Any) -> None:
    """Above the panels, where no point can be."""
    axes = figure.axes[0]
    axes.plot([], [], "o", color=FAINT, label="effective bits: entropy of the codes")
    axes.plot([], [], "o", color=FAINT, markerfacecolor=PAPER, label="nominal bits")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper right", bbox_to_anchor=(0.985, 0.98), ncol=2, frameon=False,
        labelcolor=INK, fontsize=9,
    )  # fmt: skip
