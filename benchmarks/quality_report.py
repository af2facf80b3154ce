"""What `quality.py` has found, as a Markdown table and as a plot of quality against time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from demo_runs import METHODS, TOKEN_SETS

from training.rate_distortion import COLORS, FAINT, INK, PAPER

COLUMNS = (
    *("method", "codes", "steps", "temperature", "class, %", "motion, %", "Frechet", "copies, %"),
    *("at 1.0: class, %", "Frechet", "bits per clip", "ms per video", "M parameters"),
    "train CPU s",
)


def print_table(result: dict[str, Any]) -> None:
    """A row per method, at its best temperature and at 1, and one per bound."""
    for name, facts in result["token_sets"].items():
        print(
            f"{name}: {facts['codes_per_clip']} codes of {facts['codebook_size']} a clip, "
            f"{facts['nominal_bits_per_clip']:.0f} nominal bits"
        )
    print(f"Frechet distances of {result['arguments']['samples'] // 2} clips; means of seeds")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name, found in result["methods"].items():
        best, plain = found["best"], found["by_temperature"][0]
        cells = (
            name,
            METHODS[name][0],
            str(found["num_steps"]),
            str(best["temperature"]),
            _form(best["class"], 100),
            _form(best["motion"], 100),
            _form(best["frechet"]),
            f"{100 * best['copied']['mean']:.1f}",
            _form(plain["class"], 100),
            _form(plain["frechet"]),
            f"{found['bits_per_clip']['mean']:.0f}",
            f"{1000 * found['seconds_per_video']:.0f}",
            f"{found['num_parameters'] / 1e6:.2f}",
            f"{found['train_cpu_seconds']['mean']:.0f}",
        )
        print("| " + " | ".join(cells) + " |")
    for name, found in result["bounds"].items():
        shares = f"{100 * found['class']:.1f} | {100 * found['motion']:.1f}"
        print(f"| {name} | | | | {shares} | {found['frechet']:.1f} | | | | | | | |")


def _form(value: dict[str, float], factor: float = 1.0) -> str:
    return f"{factor * value['mean']:.1f} ± {factor * value['spread']:.1f}"


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Frechet distance over the time of a video."""
    mpl.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(10, 5.5), facecolor=PAPER)
    axes.set_facecolor(PAPER)
    floor = result["bounds"]["real clips, unseen"]["frechet"]
    by_time = sorted(result["methods"].items(), key=lambda each: each[1]["seconds_per_video"])
    for number, (name, found) in enumerate(by_time):
        color = COLORS[list(TOKEN_SETS).index(METHODS[name][0])]
        x, best = 1000 * found["seconds_per_video"], found["best"]["frechet"]
        plain = found["by_temperature"][0]["frechet"]["mean"]
        axes.plot([x, x], [best["mean"], plain], color=color, alpha=0.4)
        axes.plot(x, plain, "o", markerfacecolor=PAPER, markeredgecolor=color)
        axes.errorbar(x, best["mean"], best["spread"], color=color, marker="o", capsize=3)
        above = number % 2 == 0  # in turn, since neighbours are close
        axes.annotate(
            f"{name} ({found['num_steps']})", (x, plain if above else floor),
            (-4, 8) if above else (4, -6), textcoords="offset points", color=color, fontsize=9,
            rotation=60, ha="left" if above else "right", va="bottom" if above else "top",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(floor / 3, 24)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([10, 20, 30, 50, 75, 100, 150, 200, 300, 500]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds per video, batch 1", color=INK)
    axes.set_ylabel("Frechet distance of samples, judge's features", color=INK)
    title = "Quality against time, with steps: filled at the best temperature, hollow at 1"
    axes.set_title(title, color=INK)
    for name, color in zip(TOKEN_SETS, COLORS):
        axes.plot([], [], "o", color=color, label=f"codes of a {name}")
    axes.axhline(floor, color=FAINT, linestyle="--", linewidth=1, label="real clips, unseen")
    axes.legend(labelcolor=INK, facecolor=PAPER, edgecolor=FAINT)
    axes.tick_params(colors=INK)
    axes.grid(color=FAINT, alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor=PAPER)
    pyplot.close(figure)
