"""Optimizers: Muon for matrices, AdamW for the rest.

Muon (K. Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found
by Newton-Schulz iterations. All matrices with the same smaller side are iterated together, and the
iterations run on their Gram matrices, so wide ones cost no more than square ones. The step has
AdamW's typical size (0.2 per entry, Moonlight, arXiv 2502.16982), so learning rates are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.config import OptimizerConfig

# Quintic p(s) = a s + b s^3 + c s^5, tuned for a fast rise of small singular values towards 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def make_optimizers(
    module: nn.Module, is_matrix: Callable[[str, nn.Parameter], bool], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that `is_matrix` names (if so configured), AdamW for all others."""
    trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    matrices = [each for name, each in trained if is_matrix(name, each)]
    others = [each for name, each in trained if not is_matrix(name, each)]
    betas = (config.beta1, config.beta2)
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": config.learning_rate, "weight_decay": 0.0}
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices and config.matrices == "muon":
        optimizers.append(Muon(matrices, config))
    elif matrices:
        rate, decay = config.matrix_learning_rate, config.weight_decay
        groups.append({"params": matrices, "lr": rate, "weight_decay": decay})
    adamw = torch.optim.AdamW([each for each in groups if each["params"]], betas=betas, fused=True)
    optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


@torch.no_grad()
def forget(
    optimizers: Iterable[torch.optim.Optimizer],
    rows: Mapping[nn.Parameter, Bool[Tensor, " n"]],
) -> None:
    """Clears the gradients and moments of rows of parameters, which begin anew where they are."""
    for parameter, chosen in rows.items():
        known = [each.state[parameter].values() for each in optimizers if parameter in each.state]
        mask = chosen.view(-1, *[1] * (parameter.ndim - 1))
        for value in (parameter.grad, *(each for values in known for each in values)):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(mask, 0.0)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices; a convolution counts as one, [out, all the rest]."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        defaults = {"lr": config.matrix_learning_rate, "weight_decay": config.weight_decay}
        super().__init__(parameters, defaults)
        self._momentum = config.momentum
        self._steps = config.newton_schulz_steps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            trained = [each for each in group["params"] if each.grad is not None]
            if not trained:
                continue
            gradients = [each.grad for each in trained]
            for each in trained:
                if not self.state[each]:
                    self.state[each]["momentum"] = torch.zeros_like(each)
            momenta = [self.state[each]["momentum"] for each in trained]
            torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
            looking_ahead = torch._foreach_lerp(gradients, momenta, self._momentum)
            if group["weight_decay"]:
                torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            updates = orthogonalized([each.flatten(1) for each in looking_ahead], self._steps)
            for parameter, update in zip(trained, updates):
                size = 0.2 * math.sqrt(max(update.shape))
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * size)


def orthogonalized(matrices: list[Float[Tensor, "r c"]], steps: int) -> list[Tensor]:
    """Each matrix with its singular values driven to about 1 (within 0.7 to 1.2)."""
    results: list[Tensor] = [matrices[0]] * len(matrices)
    by_side: dict[int, list[int]] = {}
    for place, matrix in enumerate(matrices):
        by_side.setdefault(min(matrix.shape), []).append(place)
    for places in by_side.values():
        wide = [
            matrices[place] if matrices[place].shape[0] <= matrices[place].shape[1]
            else matrices[place].T
            for place in places
        ]  # fmt: skip
        grams = torch.stack([each @ each.T for each in wide])
        for place, matrix, map_ in zip(places, wide, inverse_square_roots(grams, steps)):
            update = map_ @ matrix
            results[place] = update if update.shape == matrices[place].shape else update.T
    return results


def inverse_square_roots(grams: Float[Tensor, "n r r"], steps: int) -> Float[Tensor, "n r r"]:
    """About G^(-1/2) for each Gram matrix: the product of the polynomials of the iterations."""
    # The trace bounds the largest eigenvalue; the margin keeps rounding below it.
    trace = grams.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-30)[:, None, None] * 1.02
    grams = grams / trace
    a, b, c = _QUINTIC
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            grams = factor @ grams @ factor
    assert product is not None
    return product / trace.sqrt()
