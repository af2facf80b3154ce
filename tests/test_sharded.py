"""A sharded model is the whole one: outputs, gradients, steps and averages, for every method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.generators import (
    BLOCKS,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    random_codes,
)
from tests.ranks import Ranks
from training.average import WeightAverage
from training.config import OptimizerConfig, ParallelConfig
from training.generator import Generator, Known
from training.optimizer import make_optimizers
from training.parallel import add_up_gradients, distribute, make_mesh, whole
from training.ranks import rank_and_world_size
from training.tasks.generator import is_matrix

METHODS = ("raster", "par", "nar", "arpg", "next_scale", "next_scale-random")
SETTINGS = [
    ("text", "default"),
    ("class", "adaln"),
    ("text", "shared"),
    ("class", "rope"),
]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


def part_of(rank: int, world_size: int, count: int = 3) -> slice:
    """Unequal parts: the last rank has what the others leave."""
    return slice(rank, count if rank == world_size - 1 else rank + 1)


def loss_of(generator: Generator, variant: Variant, kind: str, chosen: slice, seed: int) -> Tensor:
    codes = random_codes(variant.schedule, seed)
    known = known_of(generator, codes)
    part = Known(
        known.sequence[chosen] if len(known.sequence) > 1 else known.sequence,
        known.codes[chosen],
        None if known.features is None else known.features[chosen],
    )
    logits = generator(part, encoded(kind)[chosen], variant.schedule)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), codes[chosen].flatten(), reduction="sum"
    )
    return losses


def trained(
    name: str, kind: str, block: str, parallel: ParallelConfig, matrices: str, half: bool = False
) -> dict[str, Any]:
    """Three steps of two batches each; what they leave, in one piece."""
    (variant,) = (each for each in VARIANTS if each.name == name)
    generator = make_generator(variant, kind, BLOCKS[block]).double()
    rank, world_size = rank_and_world_size()
    transformer = generator.transformer
    if torch.distributed.is_initialized():
        blocks = [*transformer.blocks, *transformer.head_blocks, *transformer.second]
        mesh = make_mesh(parallel, torch.device("cpu"))
        distribute(generator, blocks, mesh, parallel, torch.bfloat16 if half else None)
    optimizers = make_optimizers(generator, is_matrix, OptimizerConfig(matrices=matrices))
    average = WeightAverage(generator, 0.9)
    losses, gradients = [], {}
    total = 2 * 3 * variant.schedule.num_tokens
    chosen = part_of(rank, world_size)
    for step in range(3):
        for number in range(2):
            add_up_gradients(generator, number == 1)
            loss = loss_of(generator, variant, kind, chosen, 10 * step + number)
            (loss * world_size / total).backward()
            losses.append(float(loss.detach()))
        if step == 0:
            gradients = {
                key: whole(each.grad).clone()
                for key, each in generator.named_parameters()
                if each.grad is not None
            }
        norm = whole(nn.utils.clip_grad_norm_(generator.parameters(), 1.0))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
    return {
        "losses": losses,
        "gradients": gradients,
        "norm": norm,
        "weights": {key: whole(each.detach()) for key, each in generator.named_parameters()},
        "averages": {key: whole(each) for key, each in average.averages.items()},
    }


def compare(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    sums = [sum(each) for each in zip(*(rank["losses"] for rank in found))]
    assert sums == pytest.approx(expected["losses"], rel=1e-9)
    for what in ("gradients", "weights", "averages"):
        for rank in found:
            assert rank[what].keys() == expected[what].keys()
            for key, value in expected[what].items():
                near = torch.allclose(rank[what][key], value, rtol=1e-7, atol=1e-9)
                assert near, f"{what} of {key}: {(rank[what][key] - value).abs().max()}"


@pytest.mark.multiprocess
@pytest.mark.parametrize("shape", ["shard", "replicate"])
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_are_one_for_every_method(name: str, shape: str, two_ranks: Ranks) -> None:
    for number, (kind, block) in enumerate(SETTINGS):
        parallel = ParallelConfig(replicate=2 if shape == "replicate" else 1)
        matrices = ("muon", "adamw")[number % 2]
        found = two_ranks.run(trained, name, kind, block, parallel, matrices)
        compare(found, trained(name, kind, block, parallel, matrices))
