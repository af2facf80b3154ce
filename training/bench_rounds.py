"""The timed steps of the trainer's loop and of the plain one, taken in the same way.

A loop is timed from one line of metrics, or of losses, to a later one: there a GPU has nothing left
to do. Of each run the first steps are dropped, compiling among them.
"""

from __future__ import annotations

import ctypes
import gc
import io
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TextIO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from training.config import GeneratorRun
from training.launch import local
from training.metrics import read_metrics
from training.plain_loop import plain_loop
from training.tasks.generator import GeneratorTask
from training.vocabulary import ABSENT, FIELDS

_HELD_BATCHES = 8  # that the plain loop has in memory


@dataclass(frozen=True)
class Mark:
    """A moment: after how many steps, and the clocks of the wall and of all threads in seconds."""

    step: int
    wall: float
    cpu: float

    @classmethod
    def after(cls, step: int) -> Mark:
        return cls(step, time.perf_counter(), time.process_time())


@dataclass(frozen=True, kw_only=True)
class Round:
    """The timed steps of a run."""

    marks: Sequence[Mark]
    """The first one is behind the steps that are dropped."""
    peak_bytes: int | None
    """Of the device, of the process on a CPU; None where nobody tells."""
    loss: float
    data_wait_share: float = 0.0

    @property
    def each_seconds(self) -> list[float]:
        """Of a step, from each mark to the next one."""
        return [(b.wall - a.wall) / (b.step - a.step) for a, b in pairwise(self.marks)]

    @property
    def seconds(self) -> float:
        """Of a step, the median."""
        return median(self.each_seconds)

    @property
    def cpu_seconds(self) -> float:
        """Of a step, by all threads of the process."""
        first, last = self.marks[0], self.marks[-1]
        return (last.cpu - first.cpu) / (last.step - first.step)


def loop_round(run: GeneratorRun, dropped: int, device: torch.device) -> Round:
    """Trains anew: the folder of `run` is removed first."""
    assert run.out is not None
    shutil.rmtree(run.out, ignore_errors=True)
    listener = _Listener(sys.stderr)
    _forget_peak(device)
    with redirect_stderr(listener):
        local.launch(run)
    peak = _peak_bytes(device)
    lines = [line for line in read_metrics(Path(run.out)) if line["step"] > dropped]
    return Round(
        marks=[each for each in listener.marks if each.step >= dropped],
        peak_bytes=peak,
        loss=lines[-1]["loss"],
        data_wait_share=median(line["data_wait_share"] for line in lines),
    )


def plain_round(run: GeneratorRun, dropped: int, device: torch.device) -> Round:
    """Trains the same model as `run` on its first batches."""
    torch.set_flush_denormal(True)  # as the trainer does
    _forget_peak(device)
    task = GeneratorTask(run, str(device))
    loop = plain_loop(
        task.generator,
        held_batches(task, device),
        run.optimizer,
        every=run.trainer.log_every,
        half=run.trainer.precision == "bfloat16",
        compile=run.parallel.compile,
    )
    marks, step, loss = [], 0, math.nan
    while step < run.trainer.num_steps:
        step, loss = next(loop)
        marks.append(Mark.after(step))
    peak = _peak_bytes(device)
    return Round(marks=[each for each in marks if each.step >= dropped], peak_bytes=peak, loss=loss)


def held_batches(
    task: GeneratorTask, device: torch.device
) -> list[tuple[Int[Tensor, "b l"], Int[Tensor, "b n"]]]:
    """Codes and prompts of the first batches of a task, some prompts dropped as it does."""
    vocabulary, drawn = task.vocabulary, torch.Generator().manual_seed(0)
    field = FIELDS.get(vocabulary.kind, "caption")
    held = []
    for number in range(_HELD_BATCHES):
        batch = task.loader.batch(number)
        codes = torch.from_numpy(batch.arrays.astype(np.int64))
        encoded = [vocabulary.encode(each[field], cut=True) for each in batch.metadata]
        prompts = torch.tensor(encoded, dtype=torch.int64).view(len(batch), vocabulary.length)
        dropped = torch.rand(len(batch), 1, generator=drawn) < task.config.condition.dropout
        held.append((codes.to(device), prompts.masked_fill(dropped, ABSENT).to(device)))
    return held


class _Listener(io.StringIO):
    """Stands in for stderr, where the loop tells of its steps; the rest goes where it belongs."""

    def __init__(self, stderr: TextIO) -> None:
        super().__init__()
        self.marks: list[Mark] = []
        self._stderr = stderr

    def write(self, text: str) -> int:
        if text.startswith("step "):
            self.marks.append(Mark.after(int(text[5:].partition("/")[0])))
        elif text.strip():
            self._stderr.write(f"{text.rstrip()}\n")
        return len(text)


def _forget_peak(device: torch.device) -> None:
    """Begins to look for the most memory from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for itself
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
