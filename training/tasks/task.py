"""What the training loop asks of a task, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxtyping import Bool, UInt8
from numpy import ndarray
from torch import Tensor, nn

from pipeline.shards import Batch, Loader
from training.config import OptimizerConfig

Renewed = Mapping[nn.Parameter, Bool[Tensor, " n"]]
"""Rows of parameters that no gradient has moved: what is remembered of them is of another place."""


class Losses(NamedTuple):
    """Sums over this rank's part of a batch: the loop divides by the global count."""

    loss: Tensor  # of all parts; no part's loss has a gradient for another part
    num_units: int
    metrics: dict[str, Tensor]  # sums, like `loss`


class Part(NamedTuple):
    """A part of the module with optimizers, and a clipping of its gradient, of its own."""

    name: str
    module: nn.Module
    optimizer: OptimizerConfig
    is_matrix: Callable[[str, nn.Parameter], bool]  # whether the optimizer for matrices takes it
    renewed: Callable[[], Renewed] = dict  # what the last loss put somewhere new, by itself


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What there is to see of a module as it is now: pictures for people, values for curves."""

    pictures: Mapping[str, UInt8[ndarray, "h w 3"]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A module, the batches that it learns from, and the loss on one of them."""

    module: nn.Module
    parts: list[Part]  # of the module; the first is what the run is for, which is averaged
    loader: Loader
    unit: str  # what `Losses.num_units` counts, for the metrics: "tokens", "clips"
    identity: dict[str, Any]  # what a checkpoint must agree on to continue; plain JSON values
    skips_parameters: bool  # whether some batches have no use for some of the parameters

    def begin(self) -> None:
        """Initialises the module from data (every rank, alike; not when a run goes on)."""

    def losses(self, batch: Batch, step: int) -> Losses:
        """The loss of a batch; every random draw is keyed by the step."""

    def preview(self) -> Preview:
        """What to show of the first part (first rank, now and then; in eval mode)."""

    def prepare(self, run: Path) -> None:
        """Writes into the run what its checkpoints need (first rank, before training)."""

    def finish(self, run: Path) -> None:
        """Writes what the finished run is for (first rank, after training)."""
