"""The optimizers of a module: Muon for matrices, AdamW for the rest, and rows that begin anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.lookups.lookup import Renewal
from training.loop_config import OptimizerConfig
from training.muon import Muon
from training.parallel import local, own_rows

RATE, MATRIX_RATE = "learning_rate", "matrix_learning_rate"


def make_optimizers(
    module: nn.Module, is_matrix: Callable[[str, nn.Parameter], bool], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that `is_matrix` names (if so configured), AdamW for all others."""
    trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    matrices = [each for name, each in trained if is_matrix(name, each)]
    others = [each for name, each in trained if not is_matrix(name, each)]
    betas = (config.beta1, config.beta2)
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": config.learning_rate, "weight_decay": 0.0, "told": RATE}
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices and config.matrices == "muon":
        optimizers.append(Muon(matrices, config))
    elif matrices:
        rate, decay = config.matrix_learning_rate, config.weight_decay
        groups.append({"params": matrices, "lr": rate, "weight_decay": decay, "told": MATRIX_RATE})
    adamw = torch.optim.AdamW([each for each in groups if each["params"]], betas=betas, fused=True)
    optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
            group.setdefault("told", MATRIX_RATE)
    return optimizers


def learning_rates(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, float]:
    """Those of the first part that is trained, by the names that metrics have for them."""
    found: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            found.setdefault(group["told"], group["lr"])
    return found


@torch.no_grad()
def forget(
    optimizers: Iterable[torch.optim.Optimizer], renewed: Mapping[nn.Parameter, Renewal]
) -> None:
    """Clears the gradients and moments of rows that begin anew, of a gradient that was summed."""
    for parameter, renewal in renewed.items():
        known = [each.state[parameter].values() for each in optimizers if parameter in each.state]
        rows = renewal.rows[own_rows(parameter)]
        mask = rows.view(-1, *[1] * (parameter.ndim - 1))
        for value in (parameter.grad, *(each for values in known for each in values)):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                local(value).masked_fill_(mask, 0.0)


@torch.no_grad()
def put(renewed: Mapping[nn.Parameter, Renewal]) -> None:
    """Puts rows where they begin anew."""
    for parameter, renewal in renewed.items():
        own = own_rows(parameter)
        rows = renewal.rows[own]
        local(parameter)[rows] = renewal.values[own][rows].to(parameter.dtype)
