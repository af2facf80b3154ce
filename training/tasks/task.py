"""What the training loop asks of a task, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor, nn

from pipeline.shards import Batch, Loader
from tokenizer.lookups.lookup import Renewal
from training.loop_config import OptimizerConfig


class Moment(NamedTuple):
    """When a batch is learned: its position in the data, by which every draw is keyed, and the
    share of the run that is done."""

    position: int
    progress: float


class Mean(NamedTuple):
    """A sum over this rank's part of a batch, and what its mean is over."""

    total: Tensor
    weight: float


class Losses(NamedTuple):
    """Sums over this rank's part of a batch: the loop divides by the global count."""

    loss: Tensor  # of all parts; no part's loss has a gradient for another part
    metrics: Mapping[str, Mean]  # detached


class Part(NamedTuple):
    """A part of the module with optimizers, and a clipping of its gradient, of its own."""

    name: str
    module: nn.Module
    optimizer: OptimizerConfig
    is_matrix: Callable[[str, nn.Parameter], bool]  # whether the optimizer for matrices takes it
    renewed: Callable[[], Mapping[nn.Parameter, Renewal]] = dict  # what begins anew by itself


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What there is to see of a module as it is now: pictures for people, values for curves."""

    pictures: Mapping[str, UInt8[ndarray, "h w 3"]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A module, the batches that it learns from, and the loss on one of them."""

    module: nn.Module
    parts: list[Part]  # of the module; the first is what the run is for, which is averaged
    blocks: Sequence[nn.Module]  # of the module, which are sharded, recomputed, compiled one by one
    weight_dtype: torch.dtype | None  # what the module computes with, if not its own type
    loader: Loader
    unit: str  # what `count` counts, for the metrics: "tokens", "clips"
    has_result: bool  # whether `finish` has something to write
    identity: dict[str, Any]  # what a checkpoint must agree on to continue; plain JSON values

    def begin(self) -> None:
        """Initialises the module from data or from another run (every rank, alike; before it is
        sharded, and not when a run goes on)."""

    def count(self, batch: Batch) -> int:
        """How many units of loss this rank's part of a batch has; UserError when it cannot be
        learned from."""

    def flops(self, batch: Batch) -> float:
        """Operations of training on this rank's part; 0 when they are not counted."""

    def losses(self, batch: Batch, moment: Moment) -> Losses:
        """The loss of a batch; every random draw is keyed by the position."""

    def held_out(self) -> Iterator[Batch]:
        """This rank's parts of batches of held-out clips: the same number on every rank."""

    def preview(self, module: nn.Module, run: Path, step: int) -> Preview:
        """What to show of the module (first rank, now and then; whole, in eval mode)."""

    def prepare(self, run: Path) -> None:
        """Writes into the run what its checkpoints need (first rank, before training)."""

    def finish(self, module: nn.Module, run: Path) -> None:
        """Writes what the finished run is for (first rank, after training; as for a preview)."""
