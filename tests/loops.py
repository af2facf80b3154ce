"""Runs of the training loop on ranks, watched from inside; for functions of `tests.ranks`."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.shards import Batch, Loader
from tokenizer.settings import UserError
from training.block_config import BlockConfig
from training.checkpoint import Checkpoints
from training.config import DataConfig, GeneratorRun, ModelConfig
from training.launch.job import RunConfig, run_job
from training.loop_config import (
    GuardConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainerConfig,
)
from training.ranks import alone, rank_and_world_size
from training.tasks.generator import GeneratorTask
from training.tasks.task import Losses, Moment

BUCKETS = ("t5_h16_w16", "t1_h16_w16")


class Killed(Exception):
    """Stands for the end of a process."""


def small_run(shards: Path, out: Path, **changes: Any) -> GeneratorRun:
    """Two shapes, each with its batch, two of them a step; averaged weights, both optimizers."""
    trainer = TrainerConfig(
        num_steps=6,
        global_batch_size=6,
        batches_per_step=2,
        device="cpu",
        log_every=1,
        checkpoint_every=2,
        preview_every=0,
        tensorboard=False,
        ema_decay=0.9,
    )
    run = GeneratorRun(
        out=str(out),
        data=DataConfig(path=str(shards), buckets=BUCKETS, batch_sizes={"t1_h16_w16": 9}),
        model=ModelConfig(width=16, depth=2, heads=2, block=BlockConfig()),
        optimizer=OptimizerConfig(weight_decay=0.1),
        schedule=ScheduleConfig(kind="constant", warmup_steps=2),
        trainer=replace(trainer, **changes.pop("trainer", {})),
    )
    return replace(run, **changes)


def sharded(replicate: int = 1) -> ParallelConfig:
    return ParallelConfig(replicate=replicate)


def run_on_rank(config: RunConfig, **events: Any) -> dict[str, Any]:
    """What becomes of a run on this rank: `step`, `seen`, or the error; see `watched`."""
    with alone(), watched(**events) as seen:
        try:
            trained = run_job(config)
        except UserError as error:
            return {"error": str(error), "seen": seen}
        except Killed:
            return {"killed": True, "seen": seen}
    return {"step": trained.step, "is_finished": trained.is_finished, "seen": seen}


@contextmanager
def watched(
    dies_at: int | None = None,
    signalled_at: tuple[int, int] | None = None,
    broken_at: tuple[int, int] | None = None,
    loud_at: int | None = None,
    crashes_saving: int | None = None,
    cannot_publish: int | None = None,
) -> Iterator[dict[int, list[str]]]:
    """Hashes of the clips that this rank learned from, by position in the data.

    At a position: `dies_at` on every rank; `signalled_at` (rank, position): a SIGTERM; `broken_at`
    (rank, position): a loss that is no number; `loud_at`: a loss a thousand times as large.
    `crashes_saving`: the first rank's process is gone when all is written of this step's checkpoint
    but its name; `cannot_publish`: it cannot give it one.
    """
    seen: dict[int, list[str]] = {}
    rank, _ = rank_and_world_size()
    batch_of, losses_of = Loader.batch, GeneratorTask.losses
    publish_of = Checkpoints._publish

    def batch(self: Loader, step: int) -> Batch:
        if step == dies_at:
            raise Killed
        return batch_of(self, step)

    def losses(self: GeneratorTask, batch: Batch, moment: Moment) -> Losses:
        found = losses_of(self, batch, moment)
        if not self.generator.training:
            return found
        hashes = [hashlib.sha256(each.tobytes()).hexdigest()[:8] for each in batch.arrays]
        seen.setdefault(moment.position, []).extend(hashes)
        if signalled_at == (rank, moment.position):
            os.kill(os.getpid(), signal.SIGTERM)
        factor = 1.0
        if broken_at == (rank, moment.position):
            factor = float("nan")
        elif loud_at == moment.position:
            factor = 1000.0
        return found._replace(loss=found.loss * factor)

    def publish(self: Checkpoints, temporary: Path, name: str) -> None:
        if crashes_saving is not None and name == f"step_{crashes_saving:08d}":
            os._exit(9)
        if cannot_publish is not None and name == f"step_{cannot_publish:08d}":
            raise OSError("the disk is full")
        publish_of(self, temporary, name)

    Loader.batch, GeneratorTask.losses = batch, losses  # type: ignore[method-assign]
    Checkpoints._publish = publish  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Loader.batch, GeneratorTask.losses = batch_of, losses_of  # type: ignore[method-assign]
        Checkpoints._publish = publish_of  # type: ignore[method-assign]


def clips_by_position(ranks: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The clips of all ranks together."""
    positions = ranks[0]["seen"].keys()
    return {each: sorted(chain(*(rank["seen"][each] for rank in ranks))) for each in positions}


def guarded(action: str, **more: Any) -> GuardConfig:
    return GuardConfig(action=action, **more)  # type: ignore[arg-type]
