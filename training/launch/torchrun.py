"""Training in several processes of torchrun: gloo on CPUs, nccl on GPUs.

Either torchrun is given, `torchrun --nproc-per-node 2 -m training train CONFIG`, or
`--launch.kind torchrun --launch.workers 2` starts one on this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from tokenizer.settings import UserError, save_settings
from training.checkpoint import latest_checkpoint, read_state
from training.config import GeneratorRun
from training.launch.job import RunConfig, run_folder, run_job
from training.ranks import backend
from training.trainer import Trained


def under_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def is_first() -> bool:
    """Whether this process is the one that speaks for the others."""
    return os.environ["RANK"] == "0"


def join(config: RunConfig) -> Trained:
    """This process's part in a run of torchrun."""
    on_gpu = config.trainer.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group(backend(on_gpu))
    trained = run_job(config, local_rank=int(os.environ["LOCAL_RANK"]))
    # Not in a `finally`: a rank that failed must not wait for the others here.
    dist.destroy_process_group()
    return trained


def start(config: RunConfig) -> Trained:
    """Runs `python -m training` in `launch.workers` processes; UserError if one fails.

    After a failure all start again from the latest checkpoint, `launch.max_failures` times. A
    SIGTERM is theirs: they finish the step and save, for which torchrun gives them ten minutes
    (half of one where it does not know the setting).
    """
    folder = run_folder(config)
    command = "train" if isinstance(config, GeneratorRun) else "tokenizer-train"
    with tempfile.TemporaryDirectory(prefix="tessera-") as temporary:
        settings = Path(temporary) / "config.yaml"
        save_settings(config, settings)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                f"--nproc-per-node={config.launch.workers}",
                f"--max-restarts={config.launch.max_failures}",
                *("-m", "training", command, str(settings)),
            ],
            env={"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600", **os.environ},
        )
        before: list[Path | None] = []  # the latest checkpoint when a signal came
        with _forwarded(process, lambda: before.append(latest_checkpoint(folder))):
            code = process.wait()
    if code and not before:
        raise UserError(f"torchrun: a worker failed (exit code {code}); see above")
    if code and before[0] == latest_checkpoint(folder):
        raise UserError(f"{folder}: ended by a signal before it could save; see above")
    return ended(config, folder)


def ended(config: RunConfig, folder: Path) -> Trained:
    """Where a run ended, by its latest checkpoint; UserError when it has none."""
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder}: ended before its first checkpoint")
    step = int(read_state(checkpoint)["step"])
    return Trained(step, checkpoint, step >= config.trainer.num_steps)


@contextmanager
def _forwarded(process: subprocess.Popen, note: Callable[[], None]) -> Iterator[None]:
    """Passes signals on, which are noted before. A terminal sends SIGINT to all of its processes by
    itself."""

    def forward(number: int, frame: FrameType | None) -> None:
        note()
        if number == signal.SIGTERM:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, forward) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
