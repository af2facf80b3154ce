"""The main job from start to end, as the commands that a user would type, one after the other.

    OUT/videos        the corpus: mp4 files, images, a few broken files (or the user's own folder)
    OUT/data          the dataset: shards, manifest, report, tokenizer; pixel shards in data/pixels
    OUT/run           the generator: checkpoints, metrics, samples, evaluation
    OUT/result.json   what came out and what it cost

Each step continues what it finds, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.corpus import write_corpus
from pipeline.meter import Meter, adopt_orphans
from pipeline.sources.listing import list_sources
from tokenizer.settings import UserError


def run_demo(out: Path, videos: str | None, seed: int) -> int:
    """Runs every step and writes `result.json`; returns the exit code of the first that fails."""
    if videos is not None:
        list_sources([videos])  # says at once when there is nothing to read
    started = time.monotonic()
    adopt_orphans()
    meter = Meter()
    data, run = out / "data", out / "run"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None
    if videos is None:
        _say(f"corpus: moving handwritten digits in {out / 'videos'}")
        write_corpus(out / "videos", seed=seed)
        videos = str(out / "videos")
        meter.lap("corpus")
    build = ["build", "demo", f"--sources=[{json.dumps(videos)}]", f"--out={data}"]
    steps: list[tuple[str, Sequence[str]]] = [
        ("select", [*build, "--until", "select"]),
        ("tokenizer", ["tokenizer", "train", "demo-tokenizer", f"--data={data}"]),
        ("build", build),
        ("train", ["train", "demo", f"--data={data}", f"--out={run}"]),
        ("sample", ["sample", str(run)]),
        ("evaluate", ["evaluate", str(run)]),
    ]
    for name, command in steps:
        _say("$ tessera " + shlex.join(command))
        code = subprocess.run([sys.executable, "-m", "pipeline", *command], check=False).returncode
        if code:
            return code
        meter.lap(name)
    result = _result(run, data, meter, time.monotonic() - started)
    result = _with_earlier_cost(result, out / "result.json")
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _summarise(result, out)
    return 0


def _result(run: Path, data: Path, meter: Meter, wall_seconds: float) -> dict[str, Any]:
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return {
        "cpu_seconds": round(meter.total(), 1),
        "wall_seconds": round(wall_seconds, 1),
        "cpu_seconds_by_step": meter.steps,
        **evaluation["summary"],
        "paths": {
            "samples": str(run / "samples"),
            "contact_sheet": str(run / "samples" / "contact_sheet.png"),
            "nearest": str(run / "nearest.png"),
            "report": str(data / "report.html"),
            "shards": str(data / "parts"),
            "tokenizer": str(data / "tokenizer"),
            "run": str(run),
        },
    }


def _with_earlier_cost(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The cost of all calls that made this folder: one that continues a demo adds to it."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        steps = earlier["cpu_seconds_by_step"]
        return result | {
            "cpu_seconds": round(result["cpu_seconds"] + earlier["cpu_seconds"], 1),
            "wall_seconds": round(result["wall_seconds"] + earlier["wall_seconds"], 1),
            "cpu_seconds_by_step": {
                name: round(seconds + steps.get(name, 0.0), 1)
                for name, seconds in result["cpu_seconds_by_step"].items()
            },
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return result


def _summarise(result: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The main job", show_header=False)
    for name, value in result.items():
        if isinstance(value, (int, float, str)):
            table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    for name, path in result["paths"].items():
        console.print(f"{name:>14}  {path}")
    console.print(f"{'result':>14}  {out / 'result.json'}")


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)
