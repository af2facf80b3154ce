"""What the training loop asks of a task, and nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from pipeline.shards import Batch, Loader


class Losses(NamedTuple):
    """Sums over this rank's part of a batch: the loop divides by the global count."""

    loss: Tensor
    num_units: int
    metrics: dict[str, Tensor]  # sums, like `loss`


class Task(Protocol):
    """A module, the batches that it learns from, and the loss on one of them."""

    module: nn.Module
    loader: Loader
    unit: str  # what `Losses.num_units` counts, for the metrics: "tokens", "clips"
    identity: dict[str, Any]  # what a checkpoint must agree on to continue; plain JSON values

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the optimizer for matrices takes this parameter."""

    def losses(self, batch: Batch, step: int) -> Losses:
        """The loss of a batch; every random draw is keyed by the step."""

    def prepare(self, run: Path) -> None:
        """Writes into the run what its checkpoints need (first rank, before training)."""

    def finish(self, run: Path) -> None:
        """Writes what the finished run is for (first rank, after training)."""
