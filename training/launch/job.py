"""What every launcher runs in each of its processes: make the task, train it."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenizer.settings import UserError
from training.config import GeneratorRun, TokenizerRun
from training.ranks import rank_and_world_size, together
from training.run import pick_device, writable_folder
from training.tasks.generator import GeneratorTask
from training.tasks.task import Task
from training.tasks.tokenizer import TokenizerTask
from training.trainer import Trained, train

RunConfig = GeneratorRun | TokenizerRun


def run_job(config: RunConfig, local_rank: int = 0) -> Trained:
    """Trains what `config` says, as one rank of `torch.distributed` if that is initialised."""
    rank, world_size = rank_and_world_size()
    torch.set_flush_denormal(True)  # a CPU is many times slower on numbers too small to matter
    device = together(lambda: _own_device(config.trainer.device, local_rank))
    task = together(lambda: make_task(config, device, rank, world_size))
    return train(task, together(lambda: run_folder(config)), config)


def _own_device(kind: str, local_rank: int) -> str:
    """The device of this process; UserError when the machine has fewer GPUs than processes."""
    device = pick_device(kind)
    if device != "cuda":
        return device
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this machine has {torch.cuda.device_count()} GPUs, fewer than processes: lower "
            "launch.workers (torchrun: --nproc-per-node)"
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def make_task(config: RunConfig, device: str, rank: int, world_size: int) -> Task:
    if isinstance(config, GeneratorRun):
        return GeneratorTask(config, device, rank, world_size)
    return TokenizerTask(config, device, rank, world_size)


def run_folder(config: RunConfig) -> Path:
    """The run's folder; UserError when it is not named or cannot be written."""
    if config.out is None:
        raise UserError("out is required: the folder of the run, for example --out runs/generator")
    return writable_folder(config.out)
