"""Metrics of a run: JSON lines; TensorBoard and Weights & Biases if wanted; a bar on a terminal, or
lines elsewhere."""

from __future__ import annotations

import importlib
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from tokenizer.settings import UserError, to_dict
from training.loop_config import TrainerConfig


class Metrics:
    """Writes the metrics of one run; only the first rank has one."""

    def __init__(self, run: Path, config: TrainerConfig, first_step: int) -> None:
        self._run = run
        self._config = config
        self._open(first_step)
        self._wandb = _wandb(run, config)
        if first_step:
            self.say(f"continuing after step {first_step}")
        self._bar = _bar(first_step, config.num_steps) if sys.stderr.isatty() else None

    def close(self) -> None:
        self._shut()
        if self._wandb is not None:
            self._wandb.finish()
        if self._bar is not None:
            self._bar[0].stop()

    def say(self, text: str) -> None:
        """Something for people, in the terminal only."""
        print(text, file=sys.stderr, flush=True)

    def forget_after(self, step: int) -> None:
        """The steps behind this one will be written again."""
        self._shut()
        self._open(step)

    def _open(self, step: int) -> None:
        path = self._run / "metrics.jsonl"
        _forget_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._writer: Any = None
        if self._config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._run / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def _shut(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(
        self,
        step: int,
        values: Mapping[str, float],
        pictures: Mapping[str, UInt8[ndarray, "h w 3"]] | None = None,
    ) -> None:
        """The values after `step` steps; floats are rounded to six significant digits.

        A terminal shows the values whose names have no slash; pictures are for TensorBoard alone.
        """
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in rounded.items():
                self._writer.add_scalar(name, value, step)
            for name, picture in (pictures or {}).items():
                self._writer.add_image(name, picture, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({"step": step, **rounded})  # steps of its own only grow
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=step, loss=rounded["loss"], speed=_speed(rounded))
        else:
            short = {name: value for name, value in rounded.items() if "/" not in name}
            shown = "  ".join(f"{name} {value:.4g}" for name, value in short.items())
            print(f"step {step}/{self._config.num_steps}  {shown}", file=sys.stderr, flush=True)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, in order."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _forget_after(path: Path, step: int) -> None:
    """A resumed run writes the steps after its checkpoint again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # half a line, of a full disk or a power cut
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


def _wandb(run: Path, config: TrainerConfig) -> Any:
    """A run of Weights & Biases, the same each time; UserError where it is not installed."""
    if config.wandb is None:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            "trainer.wandb: Weights & Biases is not installed: pip install wandb"
        ) from None
    known = run / "wandb_id"
    if not known.exists():
        known.write_text(secrets.token_hex(8))
    sent = wandb.init(
        project=config.wandb,
        name=str(run),
        dir=str(run),
        resume="allow",
        id=known.read_text(),
        config=to_dict(config),
    )
    sent.define_metric("*", step_metric="step")
    return sent


def _speed(values: Mapping[str, float]) -> str:
    """How fast it goes, as a terminal shows it."""
    named = {name.removesuffix("_per_second"): each for name, each in values.items()}
    told = [f"{named[name]:,.0f} {name}/s" for name in ("tokens", "clips") if name in named]
    told += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
    return "  ".join(told)


def _bar(first_step: int, num_steps: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    progress.start()
    return progress, progress.add_task(
        "", total=num_steps, completed=first_step, loss=float("nan"), speed=""
    )
