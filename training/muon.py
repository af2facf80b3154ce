"""Muon: a matrix moves by the nearest orthogonal matrix to its momentum.

Muon (K. Jordan et al., 2024) finds that matrix by Newton-Schulz iterations. All matrices with the
same smaller side are iterated together, and the iterations run on their Gram matrices, so wide ones
cost no more than square ones. The step has AdamW's typical size (0.2 per entry, Moonlight, arXiv
2502.16982), so learning rates are alike. Of sharded matrices each is iterated by one rank, to which
the others send their rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.loop_config import OptimizerConfig
from training.parallel import local, rows_of

# Quintic p(s) = a s + b s^3 + c s^5, tuned for a fast rise of small singular values towards 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


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
            for each in trained:
                if not self.state[each]:
                    self.state[each]["momentum"] = torch.zeros_like(each)
            own = [local(each) for each in trained]
            gradients = [local(each.grad) for each in trained]
            momenta = [local(self.state[each]["momentum"]) for each in trained]
            torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
            looking_ahead = torch._foreach_lerp(gradients, momenta, self._momentum)
            if group["weight_decay"]:
                torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
            rows = [each.flatten(1) for each in looking_ahead]
            updates = _of_shards(trained, rows, self._steps)
            for parameter, mine, update in zip(trained, own, updates):
                size = 0.2 * math.sqrt(max(parameter.shape[0], math.prod(parameter.shape[1:])))
                mine.add_(update.view_as(mine), alpha=-group["lr"] * size)


def _of_shards(
    parameters: Sequence[nn.Parameter], rows: list[Float[Tensor, "r c"]], steps: int
) -> list[Tensor]:
    """This rank's rows of the orthogonalised matrices, from its rows of the matrices."""
    first = parameters[0]
    if not isinstance(first, DTensor) or first.device_mesh.size(first.device_mesh.ndim - 1) == 1:
        return orthogonalized(rows, steps)
    mesh = first.device_mesh
    group = mesh.get_group(mesh.ndim - 1)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    shapes = [(each.shape[0], own.shape[1]) for each, own in zip(parameters, rows)]
    owners = _shared_out(shapes, size)
    parts = [
        [(owner, number, rows_of(shard, shapes[number][0], size)) for number, owner in owners]
        for shard in range(size)
    ]  # of each shard: whose matrix, which, and the rows of it that the shard holds

    def count(shard: int, owner: int) -> int:
        return sum(
            (part.stop - part.start) * shapes[number][1]
            for whose, number, part in parts[shard]
            if whose == owner
        )

    sent = [rows[number].flatten() for _, number, _ in parts[rank]]
    to_owners = [count(rank, owner) for owner in range(size)]
    from_shards = [count(shard, rank) for shard in range(size)]
    received = rows[0].new_empty(sum(from_shards))
    dist.all_to_all_single(received, torch.cat(sent), from_shards, to_owners, group)
    mine = [number for number, owner in owners if owner == rank]
    matrices = [rows[0].new_empty(shapes[number]) for number in mine]
    places = [
        matrices[mine.index(number)][part]
        for shard in range(size)
        for whose, number, part in parts[shard]
        if whose == rank
    ]
    for place, values in zip(places, received.split([each.numel() for each in places])):
        place.copy_(values.view_as(place))
    for matrix, update in zip(matrices, orthogonalized(matrices, steps) if matrices else []):
        matrix.copy_(update)
    sent = [each.flatten() for each in places]
    returned = rows[0].new_empty(sum(to_owners))
    joined = torch.cat(sent) if sent else returned[:0]
    dist.all_to_all_single(returned, joined, to_owners, from_shards, group)
    numbers = [number for _, number, _ in parts[rank]]
    updates: list[Tensor] = list(rows)
    for number, values in zip(numbers, returned.split([rows[each].numel() for each in numbers])):
        updates[number] = values.view_as(rows[number])
    return updates


def _shared_out(shapes: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """(matrix, its owner), by owner: the dearest first, each to the rank with least to do."""
    costs = [min(shape) ** 2 * max(shape) for shape in shapes]
    load = [0] * size
    owners = []
    for number in sorted(range(len(shapes)), key=lambda number: -costs[number]):
        owner = load.index(min(load))
        load[owner] += costs[number]
        owners.append((number, owner))
    return sorted(owners, key=lambda each: (each[1], each[0]))


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
