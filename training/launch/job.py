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
    device = pick_device(config.trainer.device)
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        device = f"cuda:{local_rank}"
    task = together(lambda: make_task(config, device, rank, world_size))
    return train(task, together(lambda: run_folder(config)), config)


def make_task(config: RunConfig, device: str, rank: int, world_size: int) -> Task:
    if isinstance(config, GeneratorRun):
        return GeneratorTask(config, device, rank, world_size)
    return TokenizerTask(config, device, rank, world_size)


def run_folder(config: RunConfig) -> Path:
    """The run's folder; UserError when it is not named or cannot be written."""
    if config.out is None:
        raise UserError("out is required: the folder of the run, for example --out runs/generator")
    return writable_folder(config.out)
