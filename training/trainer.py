"""The one training loop. It knows neither what it trains nor who launched it.

A task brings a module, batches and a loss; a launcher may have initialised `torch.distributed`, in
which case gradients are averaged by DistributedDataParallel. The loss of a rank is its sum times
the number of ranks over the *global* count, so that unequal parts weigh as they should. Everything
that a step draws is a function of the step: an interrupted run, started again, ends bit for bit
where the undisturbed one does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.shards import Batch
from training.checkpoint import (
    check_identity,
    latest_checkpoint,
    load_optimizers,
    load_weights,
    read_state,
    save_checkpoint,
)
from training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from training.draws import seed_step
from training.metrics import Metrics
from training.optimizer import make_optimizers
from training.schedule import learning_rate_factor
from training.tasks.task import Losses, Task


@dataclass(frozen=True)
class Trained:
    """The end of a run."""

    step: int
    checkpoint: Path


def train(
    task: Task,
    run: Path,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    trainer: TrainerConfig,
) -> Trained:
    """Trains `task` in the folder `run` up to `trainer.num_steps`, from its latest checkpoint.

    Raises UserError when that checkpoint is of another model, data set or seed.
    """
    rank, world_size = rank_and_world_size()
    is_first = rank == 0
    device = next(task.module.parameters()).device
    optimizers = make_optimizers(task.module, task.is_matrix, optimizer)
    first_step = _restored(task, run, optimizers)
    step_module = _wrapped(task, world_size)
    if is_first:
        task.prepare(run)
    metrics = Metrics(run, trainer, first_step) if is_first else None
    sums = _Sums(device)
    task.module.train()
    with task.loader.batches(first_step, trainer.num_steps) as batches:
        for step in range(first_step, trainer.num_steps):
            rate = learning_rate_factor(schedule, step, trainer.num_steps)
            seed_step(trainer.seed, step, rank)
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            losses: Losses = step_module(batch, step)
            count = _summed(torch.tensor(float(losses.num_units), device=device))
            (losses.loss * (world_size / count)).backward()
            norm = _clipped(task.module, optimizer.clip_norm)
            _apply(optimizers, rate)
            sums.add(losses, waited, time.perf_counter() - started)
            done = step + 1
            is_last = done == trainer.num_steps
            if done % trainer.log_every == 0 or is_last:
                values = sums.take(task.unit)
                if metrics is not None:
                    peak = optimizers[0].param_groups[0]["lr"]
                    metrics.write(
                        done, values | {"learning_rate": peak, "gradient_norm": float(norm)}
                    )
            if is_first and (done % trainer.checkpoint_every == 0 or is_last):
                keep = trainer.keep_checkpoints
                save_checkpoint(run, done, task.module, optimizers, task.identity, keep)
    if metrics is not None:
        metrics.close()
        task.finish(run)
    barrier()
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return Trained(trainer.num_steps, checkpoint)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Waits for all ranks."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def _restored(task: Task, run: Path, optimizers: list[torch.optim.Optimizer]) -> int:
    """Loads the latest checkpoint and says how many steps it has behind it."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return 0
    check_identity(checkpoint, task.identity)
    load_weights(checkpoint, task.module)
    load_optimizers(checkpoint, task.module, optimizers)
    return int(read_state(checkpoint)["step"])


class _Step(nn.Module):
    """The loss of a task as the forward pass of a module, which is what DDP wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._losses = task.losses

    def forward(self, batch: Batch, step: int) -> Losses:
        return self._losses(batch, step)


def _wrapped(task: Task, world_size: int) -> nn.Module:
    step_module = _Step(task)
    if world_size == 1:
        return step_module
    return DistributedDataParallel(step_module)


def _clipped(module: nn.Module, clip_norm: float) -> Tensor:
    """The norm of the gradient, which is scaled down to `clip_norm` if longer (0: left alone)."""
    parameters = [each for each in module.parameters() if each.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))


def _apply(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _Sums:
    """Sums over the steps since the last line of metrics, reduced over ranks when taken."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._waited = 0.0
        self._seconds = 0.0

    def add(self, losses: Losses, waited: float, seconds: float) -> None:
        for name, value in {"loss": losses.loss, **losses.metrics}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + losses.num_units
        self._waited += waited
        self._seconds += seconds

    def take(self, unit: str) -> dict[str, float]:
        """Means over the global counts, and speed; starts anew."""
        counts = torch.tensor(list(self._counts.values()), device=self._device)
        totals = _summed(torch.stack([torch.stack(list(self._sums.values())), counts]).double())
        values = dict(zip(self._sums, (totals[0] / totals[1]).tolist()))
        values[f"{unit}_per_second"] = float(totals[1, 0]) / self._seconds
        values["data_wait_share"] = self._waited / self._seconds
        self._clear()
        return values


def _summed(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(value)
    return value
