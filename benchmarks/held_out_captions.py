"""Does a generator understand its captions? Samples of triples that it was never trained on.

    python benchmarks/held_out_captions.py             make bench-text; half an hour on one core
    python benchmarks/held_out_captions.py --quick     minutes: one seed, short trainings
    python benchmarks/held_out_captions.py --set sampling.temperature=0.8

The demo's captions name a color, a digit and a motion: 160 triples. A build of the demo's corpus
with `select.hold_out caption` keeps a tenth of them, by hash, out of the tokenizer's and the
generator's training. The demo's generator then samples both kinds, and a judge that was trained on
the real clips of the trained triples says what is to be seen: each attribute, and all three at once
(goal for held-out triples: 50%). It has seen no held-out triple either; what it makes of their real
clips stands beside.

Writes a table, `benchmarks/out/held_out_captions.json`, and samples of held-out triples as
`held_out_captions.png`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from demo_runs import (
    OUT,
    PRESETS,
    QUIET,
    ROOT,
    built,
    facts,
    generator_run,
    short_hash,
    tokenizer_run,
)
from rich.console import Console
from rich.table import Table

from pipeline.config import BuildConfig
from pipeline.shards import open_dataset
from tokenizer.settings import read_settings, to_dict
from training.config import DataConfig, SampleConfig
from training.evaluate import evaluate
from training.evaluate_config import EvaluateConfig
from training.launch.local import launch

WORK = OUT / "held_out_captions"
NAME = "held_out_captions"
GOAL = 0.5
TRIPLES = {"val": "held out", "train": "trained on"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, short trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=320, help="clips to judge per seed and kind")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the demo's generator"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.samples = 1, 80
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    data = _dataset(arguments.quick)
    trials = [_trial(seed, data, arguments) for seed in range(arguments.seeds)]
    result = {
        **facts(arguments),
        "captions": {TRIPLES[split]: len(_captions(data, split)) for split in TRIPLES},
        "of_seeds": {kind: _of_seeds([each[kind] for each in trials]) for kind in TRIPLES.values()},
        "goal": GOAL,
        "trials": trials,
    }
    (OUT / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    print(f"{OUT / NAME}.json, {OUT / NAME}.png")
    return 0


def _dataset(quick: bool) -> Path:
    """The demo's dataset, captions held out: made as the demo makes it."""
    clips = 400 if quick else 1200
    folder = WORK / f"data-{clips}"
    config = read_settings(
        BuildConfig,
        ROOT / "pipeline" / "presets" / "demo.yaml",
        {
            "sources": (str(WORK / f"videos-{clips}"),),
            "out": str(folder),
            "executor": "inline",
            "select.hold_out": "caption",
        },
    )
    run = replace(
        tokenizer_run({"trainer.num_steps": 300} if quick else {}),
        out=str(folder / "tokenizer_run"),
        result=str(folder / "tokenizer"),
    )
    return built(config, [run], num_clips=clips)


def _captions(data: Path, split: str) -> set[str]:
    """Of the clips; UserError from the dataset when the split has none."""
    samples = open_dataset(data).samples(split)
    return {each["caption"] for each in samples.each_metadata()}


def _trial(seed: int, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training and what its samples show; read from its folder when it was done before."""
    changes = {
        "trainer.seed": seed,
        **QUIET,
        **({"trainer.num_steps": 90} if arguments.quick else {}),
        **dict(each.split("=", 1) for each in arguments.set),
    }
    run = generator_run(DataConfig(path=str(data)), changes)
    preset = (PRESETS / "demo.yaml").read_text()
    learned = {key: value for key, value in changes.items() if not key.startswith("sampling.")}
    folder = WORK / f"run-{seed}-{short_hash([preset, learned, data.name])}"
    report_file = folder / f"report-{arguments.samples}-{short_hash(to_dict(run.sampling))}.json"
    if report_file.exists():
        return json.loads(report_file.read_text())
    launch(replace(run, out=str(folder)))
    trial: dict[str, Any] = {"seed": seed}
    judge = WORK / f"judge-{data.name}"
    if judge.exists():
        shutil.copytree(judge, folder / "judge", dirs_exist_ok=True)
    sample = replace(SampleConfig(device="cpu"), **vars(run.sampling))
    for split, kind in TRIPLES.items():
        config = EvaluateConfig(num_samples=arguments.samples, prompts_of=split, sample=sample)
        report = evaluate(folder, config, say=lambda line: print(line, file=sys.stderr))
        trial[kind] = {
            name: report[name]
            for name in ("accuracy", "joint_accuracy", "num_prompts", "num_held_out", "frechet")
        }
        if split == "val" and seed == 0:
            shutil.copy(folder / "nearest.png", OUT / f"{NAME}.png")
    if not judge.exists():
        shutil.copytree(folder / "judge", judge)
    report_file.write_text(json.dumps(trial, indent=1) + "\n")
    return trial


def _of_seeds(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Per group of clips and attribute, and for all of them at once: mean and deviation."""
    found = {}
    for group in ("samples", "reconstructions", "real_held_out"):
        shares = [
            {**each["accuracy"][group], "all": each["joint_accuracy"][group]} for each in reports
        ]
        found[group] = {
            name: (
                mean(each[name] for each in shares),
                stdev(each[name] for each in shares) if len(shares) > 1 else 0.0,
            )
            for name in shares[0]
        }
    return found


def _print(result: dict[str, Any]) -> None:
    seeds, captions = result["arguments"]["seeds"], result["captions"]
    table = Table(title=f"Judged right, means of {seeds} seeds", title_justify="left")
    rows = {
        f"samples of {captions['held out']} held-out triples": ("held out", "samples"),
        f"samples of {captions['trained on']} trained triples": ("trained on", "samples"),
        "held-out triples, real clips": ("held out", "real_held_out"),
        "held-out triples, reconstructions": ("held out", "reconstructions"),
    }
    attributes = list(result["of_seeds"]["held out"]["samples"])
    table.add_column("")
    for name in attributes:
        table.add_column("all at once" if name == "all" else name, justify="right")
    for title, (kind, group) in rows.items():
        found = result["of_seeds"][kind][group]
        table.add_row(
            title, *(f"{found[name][0]:.1%} ± {found[name][1]:.1%}" for name in attributes)
        )
    console = Console(width=max(Console().width, 110))
    console.print(table)
    reached = result["of_seeds"]["held out"]["samples"]["all"][0]
    verdict = "reached" if reached >= GOAL else "missed"
    console.print(
        f"goal {verdict}: {reached:.1%} of held-out samples show all of it, {GOAL:.0%} wanted"
    )


if __name__ == "__main__":
    sys.exit(main())
