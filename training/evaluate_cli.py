"""The command that judges: `tessera evaluate RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer.settings import UserError, add_flags, given_flags
from training.evaluate_config import EvaluateConfig

_EXAMPLE = """\
examples:
  tessera evaluate runs/demo/run
  tessera evaluate runs/demo/run --num_samples 400 --sample.guidance.scale 2
  tessera evaluate runs/demo/run --data /elsewhere/data
  tessera evaluate runs/demo/run --samples SAMPLES       a folder of tessera sample --out SAMPLES
  tessera evaluate runs/demo/run --prompts_of val        what it was never trained on

writes RUN/evaluation.json, RUN/nearest.png and the trained judge in RUN/judge
"""
_NOT_SAMPLED = (
    *("out", "num", "max_prompts", "prompts", "videos", "stream", "ranks", "fps"),
    "shape",
)
_NOT_FLAGS = tuple(f"sample.{name}" for name in _NOT_SAMPLED)


def register(commands: Any, prepare_pixels: Callable[[str], Path] | None = None) -> None:
    """Adds `evaluate`; `prepare_pixels` makes the real clips of a dataset when they are missing."""
    parser = commands.add_parser(
        "evaluate",
        help="how good a run is: bits of held-out clips, judged samples, distances, copies",
        description="Says how many bits the codes of held-out clips have under the run. Trains a "
        "small classifier on the real clips of the run's dataset and lets it say what samples "
        "show; compares them with real clips and looks for copies.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN", help="the folder that `tessera train` made")
    add_flags(parser, EvaluateConfig, leave_out=_NOT_FLAGS)
    parser.set_defaults(run=_evaluate, prepare_pixels=prepare_pixels)


def _evaluate(arguments: argparse.Namespace) -> int:
    from training.evaluate import evaluate
    from training.run import sample_settings

    run, flags = Path(arguments.run_dir), given_flags(arguments)
    drawn = [each for each in flags if each.startswith("sample.") and each != "sample.device"]
    if "samples" in flags and drawn:
        raise UserError(
            f"--{drawn[0]} says how clips are sampled, and those of --samples are there already: "
            "leave one of them out"
        )
    report = evaluate(
        run,
        sample_settings(EvaluateConfig, run, flags, "sample."),
        prepare_pixels=arguments.prepare_pixels,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _print_table(report)
    print(Path(arguments.run_dir) / "evaluation.json")
    print(Path(arguments.run_dir) / "nearest.png")
    return 0


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    groups = ("real_held_out", "reconstructions", "samples")
    prompts_of = report["made_by"]["settings"]["prompts_of"]
    of_prompts = f"{report['num_prompts']} prompts of split {prompts_of}"
    title = f"{report['num_samples']} samples for {of_prompts}, beside real clips"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for group in groups:
        table.add_column(group.replace("_", " "), justify="right")
    accuracy = report["accuracy"]
    for name in accuracy.get("real_held_out", {}):
        shares = [accuracy[group].get(name) for group in groups]
        table.add_row(
            f"{name} as judged", *("" if share is None else f"{share:.1%}" for share in shares)
        )
    if report["joint_accuracy"]:
        shares = [report["joint_accuracy"][group] for group in groups]
        table.add_row("all of these at once", *(f"{share:.1%}" for share in shares))
    if report["frechet"]:
        distances = [f"{report['frechet'][group]:.2f}" for group in groups]
        size = report["frechet"]["num_clips"]
        table.add_row(f"Frechet distance of {size} clips to real", *distances)
    bits = report["bits"]
    if "per_clip" in bits:
        title = f"bits of {bits['num_clips']} {bits['split']} clips (of a code)"
        table.add_row(title, f"{bits['per_clip']:.1f} ({bits['per_code']:.2f})", "", "")
    table.add_row("PSNR, dB", "", f"{report['psnr']:.1f}", "")
    table.add_row("PSNR of the mean color, dB", "", f"{report['psnr_mean_color']:.1f}", "")
    near = report["nearest_psnr"]
    table.add_row(
        "nearest training clip, dB", f"{near['real_held_out']:.1f}", "", f"{near['samples']:.1f}"
    )
    table.add_row("copies of training clips", "", "", f"{report['copy_share']:.1%}")
    Console().print(table)
