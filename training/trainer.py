"""The one training loop. It knows neither what it trains nor who launched it.

A task brings a module, batches and a loss; a launcher may have initialised `torch.distributed`, in
which case gradients are averaged by DistributedDataParallel. The loss of a rank is its sum times
the number of ranks over the *global* count, so that unequal parts weigh as they should. A module
may have several parts, each with optimizers of its own, and one loss whose terms keep to their
part. Everything that a step draws is a function of the step: an interrupted run, started again,
ends bit for bit where the undisturbed one does.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.shards import Batch
from training.average import WeightAverage
from training.checkpoint import (
    check_identity,
    latest_checkpoint,
    load_average,
    load_optimizers,
    load_weights,
    read_state,
    save_checkpoint,
)
from training.config import ScheduleConfig, TrainerConfig
from training.draws import seed_step
from training.guard import refuse_nonfinite
from training.metrics import Metrics
from training.optimizer import forget, make_optimizers
from training.schedule import learning_rate_factor
from training.tasks.task import Losses, Part, Preview, Task


@dataclass(frozen=True)
class Trained:
    """The end of a run."""

    step: int
    checkpoint: Path


def train(task: Task, run: Path, schedule: ScheduleConfig, trainer: TrainerConfig) -> Trained:
    """Trains `task` in the folder `run` up to `trainer.num_steps`, from its latest checkpoint.

    Raises UserError when that checkpoint is of another model, data set or seed, and when a loss is
    no number.
    """
    rank, world_size = rank_and_world_size()
    is_first = rank == 0
    device = next(task.module.parameters()).device
    optimizers = [
        each
        for part in task.parts
        for each in make_optimizers(part.module, part.is_matrix, part.optimizer)
    ]
    first_step, average = _restored(task, run, optimizers, trainer.ema_decay)
    step_module = _wrapped(task, world_size, trainer.precision)
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
            renewed = {key: rows for part in task.parts for key, rows in part.renewed().items()}
            forget(optimizers, renewed)
            norms = [_clipped(part) for part in task.parts]
            refuse_nonfinite(norms, losses.loss, batch, step)
            _apply(optimizers, rate)
            if average is not None:
                average.update(renewed)
            sums.add(losses, waited, time.perf_counter() - started)
            done = step + 1
            is_last = done == trainer.num_steps
            is_shown = trainer.preview_every > 0 and (done % trainer.preview_every == 0 or is_last)
            if done % trainer.log_every == 0 or is_last or is_shown:
                values = sums.take(task.unit)
                if metrics is not None:
                    values["learning_rate"] = optimizers[0].param_groups[0]["lr"]
                    values |= _named(task.parts, norms)
                    shown = _preview(task, average) if is_shown else Preview()
                    metrics.write(done, values | dict(shown.values), shown.pictures)
            if is_first and (done % trainer.checkpoint_every == 0 or is_last):
                keep = trainer.keep_checkpoints
                save_checkpoint(run, done, task.module, optimizers, task.identity, keep, average)
    if metrics is not None:
        metrics.close()
        with _averaged(average):
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


def _restored(
    task: Task, run: Path, optimizers: list[torch.optim.Optimizer], ema_decay: float
) -> tuple[int, WeightAverage | None]:
    """Begins, or loads the latest checkpoint: how many steps are done, and the averaged weights."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        task.begin()
    else:
        check_identity(checkpoint, task.identity)
        load_weights(checkpoint, task.module)
        load_optimizers(checkpoint, task.module, optimizers)
    average = WeightAverage(task.parts[0].module, ema_decay) if ema_decay else None
    if checkpoint is None:
        return 0, average
    if average is not None:
        load_average(checkpoint, average)
    return int(read_state(checkpoint)["step"]), average


class _Step(nn.Module):
    """The loss of a task as the forward pass of a module, which is what DDP wraps."""

    def __init__(self, task: Task, precision: str) -> None:
        super().__init__()
        self.module = task.module
        self._losses = task.losses
        self._precision = precision
        self._device = next(task.module.parameters()).device.type

    def forward(self, batch: Batch, step: int) -> Losses:
        with torch.autocast(
            self._device, dtype=torch.bfloat16, enabled=self._precision == "bfloat16"
        ):
            return self._losses(batch, step)


def _wrapped(task: Task, world_size: int, precision: str) -> nn.Module:
    step_module = _Step(task, precision)
    if world_size == 1:
        return step_module
    # Buffers are the same on every rank because every rank computes the same ones.
    with warnings.catch_warnings():  # torch 2.15 renames the setting; 2.11 knows this name only
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            step_module, broadcast_buffers=False, find_unused_parameters=task.skips_parameters
        )


def _clipped(part: Part) -> Tensor:
    """The norm of a part's gradient, which is scaled down to `clip_norm` if longer (0: left)."""
    parameters = [each for each in part.module.parameters() if each.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, part.optimizer.clip_norm or float("inf"))


def _named(parts: Sequence[Part], norms: Sequence[Tensor]) -> dict[str, float]:
    """The norms for the log: the first part's is `gradient_norm`."""
    names = ["gradient_norm", *(f"{part.name}_gradient_norm" for part in parts[1:])]
    return {name: float(norm) for name, norm in zip(names, norms)}


def _averaged(average: WeightAverage | None) -> AbstractContextManager[None]:
    return nullcontext() if average is None else average.applied()


def _preview(task: Task, average: WeightAverage | None) -> Preview:
    """The first part as it would be if the run ended now."""
    task.module.eval()
    with _averaged(average), torch.no_grad():
        preview = task.preview()
    task.module.train()
    return preview


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
