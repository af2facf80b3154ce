"""The main job from start to end, as the commands that a user would type, one after the other.

    OUT/videos        the corpus: mp4 files, images, a few broken files (or the user's own folder)
    OUT/data          the dataset: shards, manifest, report, tokenizer; pixel shards in data/pixels
    OUT/run           the generator: checkpoints, metrics, samples, evaluation
    OUT/result.json   what came out and what it cost

Each step continues what it finds, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.corpus import write_corpus
from pipeline.sources import list_sources
from tokenizer.settings import UserError

_PR_SET_CHILD_SUBREAPER = 36


def run_demo(out: Path, videos: str | None, seed: int) -> int:
    """Runs every step and writes `result.json`; returns the exit code of the first that fails."""
    if videos is not None:
        list_sources([videos])  # says at once when there is nothing to read
    started = time.monotonic()
    _adopt_orphans()
    meter = _Meter()
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


class _Meter:
    """CPU seconds of this process and of everything below it, step by step.

    Ray's processes are not waited for by their parents, so what the kernel adds up for us misses
    them: a thread looks at all descendants every second and keeps what each had used when it was
    last seen (Linux; elsewhere only what was waited for counts).
    """

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._before = 0.0
        self._seen: dict[tuple[int, int], float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def lap(self, name: str) -> None:
        total = self.total()
        self.steps[name] = round(total - self._before, 1)
        self._before = total

    def total(self) -> float:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        own, waited_for = (usage.ru_utime + usage.ru_stime for usage in usages)
        self._look()
        return own + max(waited_for, sum(self._seen.values()))

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(1.0)

    def _look(self) -> None:
        processes = _processes()
        children: dict[int, list[int]] = {}
        for pid, (parent, _, _) in processes.items():
            children.setdefault(parent, []).append(pid)
        below = list(children.get(os.getpid(), ()))
        for pid in below:
            below += children.get(pid, ())
            _, started, seconds = processes[pid]
            self._seen[pid, started] = seconds


def _processes() -> dict[int, tuple[int, int, float]]:
    """(parent, start time, CPU seconds) of every process, from /proc; empty where there is none."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / ticks
            found[int(path.parent.name)] = (int(fields[1]), int(fields[19]), seconds)
    return found


def _adopt_orphans() -> None:
    """Makes this process the parent of orphans below it, so that Ray's workers are counted."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _result(run: Path, data: Path, meter: _Meter, wall_seconds: float) -> dict[str, Any]:
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
