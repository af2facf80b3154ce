"""What training changes, as named tensors: the module, what optimizers remember, the averages.

Names are those of a checkpoint. Tensors are this rank's: DTensors where the module is sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizer.settings import UserError
from training.average import WeightAverage
from training.checkpoint import AVERAGE, MODEL, OPTIMIZER, check_fit
from training.muon import Muon
from training.tensor_parts import Stored, read_tensors, stored_tensors


@dataclass(frozen=True)
class TrainingState:
    """A module with its optimizers and, if wanted, the average of a part of it."""

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: WeightAverage | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name; they share their memory with what they are of."""
        named = {MODEL + name: value for name, value in self.module.state_dict().items()}
        for name, parameter, optimizer in self._trained():
            for entry, value in optimizer.state.get(parameter, {}).items():
                named[f"{OPTIMIZER}{name}/{entry}"] = value
        return named | self._averages()

    def restore(self, checkpoint: Path) -> bool:
        """Fills everything from a checkpoint; whether it has averages.

        Without them, averages begin with the weights. UserError when it is of another model.
        """
        stored = stored_tensors(checkpoint)
        wanted = {MODEL + name: value for name, value in self.module.state_dict().items()}
        unexpected = {name for name in stored if name.startswith(MODEL)} - wanted.keys()
        trained = {name: (parameter, optimizer) for name, parameter, optimizer in self._trained()}
        entries: list[tuple[nn.Parameter, torch.optim.Optimizer, str, Tensor]] = []
        for full_name in stored:
            if not full_name.startswith(OPTIMIZER):
                continue
            name, entry = full_name.removeprefix(OPTIMIZER).rsplit("/", 1)
            if name not in trained:
                raise UserError(f"{checkpoint}: optimizer state of unknown parameter {name}")
            parameter, optimizer = trained[name]
            before = optimizer.state.get(parameter, {}).get(entry)
            wanted[full_name] = _like(stored[full_name], parameter, before)
            entries.append((parameter, optimizer, entry, wanted[full_name]))
        _check_entries(checkpoint, entries)
        averages = self._averages()
        has_averages = bool(averages) and any(name.startswith(AVERAGE) for name in stored)
        wanted |= averages if has_averages else {}
        check_fit(checkpoint, stored, wanted, unexpected)
        read_tensors(checkpoint, wanted)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for parameter, optimizer, entry, value in entries:
            optimizer.state[parameter][entry] = value
        if self.average is not None and not has_averages:
            self.average.begin()
        return has_averages

    def _averages(self) -> dict[str, Tensor]:
        if self.average is None:
            return {}
        prefix = next(
            f"{name}." if name else ""
            for name, each in self.module.named_modules()
            if each is self.average.module
        )
        return {AVERAGE + prefix + name: each for name, each in self.average.averages.items()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[parameter], parameter, optimizer


def _check_entries(
    checkpoint: Path,
    entries: Sequence[tuple[nn.Parameter, torch.optim.Optimizer, str, Tensor]],
) -> None:
    """UserError unless each parameter has just what its optimizer remembers."""
    found: dict[nn.Parameter, set[str]] = {}
    for parameter, _, entry, _ in entries:
        found.setdefault(parameter, set()).add(entry)
    for parameter, optimizer, _, _ in entries:
        kept = {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
        if found[parameter] != kept:
            raise UserError(
                f"{checkpoint}: made with another optimizer: it remembers "
                f"{', '.join(sorted(found[parameter]))}, not {', '.join(sorted(kept))}; use the "
                "optimizer.matrices that it was made with, or begin a new run with --begin.run"
            )


def _like(stored: Stored, parameter: nn.Parameter, before: Tensor | None) -> Tensor:
    """A tensor to read what an optimizer remembers into: of the parameter's shape, or a number."""
    if before is not None and (before.shape, before.dtype) == (stored.shape, stored.dtype):
        return before
    if stored.shape == tuple(parameter.shape):
        return torch.zeros_like(parameter, dtype=stored.dtype)
    if stored.shape:
        raise UserError(
            f"optimizer state of shape {list(stored.shape)} for {list(parameter.shape)}"
        )
    return torch.zeros((), dtype=stored.dtype, device=parameter.device)
