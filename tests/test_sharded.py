"""A sharded model is the whole one: outputs, gradients, steps and averages, for every method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

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
from tests.test_tokenizer_task import TINY
from tokenizer.learner import Learner
from tokenizer.model import Tokenizer
from training.average import WeightAverage
from training.generator import Generator, Known
from training.loop_config import OptimizerConfig, ParallelConfig
from training.optimizer import forget, make_optimizers, put
from training.parallel import add_up_gradients, distribute, make_mesh, whole
from training.ranks import alone, rank_and_world_size
from training.tasks.generator import is_matrix

METHODS = ("raster", "par", "nar", "arpg", "next_scale", "next_scale-random")
SETTINGS = [
    ("text", "default"),
    ("class", "adaln"),
    ("text", "shared"),
    ("class", "rope"),
]


NUM_CLIPS = 6
PARTS = {1: (0, 6), 2: (0, 1, 6), 4: (0, 1, 2, 4, 6)}
"""Where the clips of each rank begin and end: unequal parts."""


def loss_of(generator: Generator, variant: Variant, kind: str, part: slice, seed: int) -> Tensor:
    codes = torch.cat([random_codes(variant.schedule, seed + each) for each in (0, 100)])
    known = known_of(generator, codes)
    own = Known(
        known.sequence[part],
        known.codes[part],
        None if known.features is None else known.features[part],
    )
    logits = generator.by_cell(own, encoded(kind).repeat(2, 1)[part], variant.schedule)
    return nn.functional.cross_entropy(logits.flatten(0, 1), codes[part].flatten(), reduction="sum")


def variant_of(name: str) -> Variant:
    return next(each for each in VARIANTS if each.name == name)


def sharded(
    generator: Generator, parallel: ParallelConfig, dtype: torch.dtype | None = None
) -> Generator:
    transformer = generator.transformer
    blocks = [*transformer.blocks, *transformer.head_blocks, *transformer.second]
    distribute(generator, blocks, make_mesh(parallel, torch.device("cpu")), parallel, dtype)
    return generator


def trained(
    name: str, kind: str, block: str, parallel: ParallelConfig, matrices: str
) -> dict[str, Any]:
    """Three steps of two batches each; what they leave, in one piece."""
    variant = variant_of(name)
    generator = make_generator(variant, kind, BLOCKS[block]).double()
    rank, world_size = rank_and_world_size()
    if torch.distributed.is_initialized():
        generator = sharded(generator, parallel)
    optimizers = make_optimizers(generator, is_matrix, OptimizerConfig(matrices=matrices))
    average = WeightAverage(generator, 0.9)
    losses, gradients = [], {}
    total = 2 * NUM_CLIPS * variant.schedule.num_tokens
    part = slice(*PARTS[world_size][rank : rank + 2])
    for step in range(3):
        for number in range(2):
            add_up_gradients(generator, parallel, number == 1)
            loss = loss_of(generator, variant, kind, part, 10 * step + number)
            (loss * world_size / total).backward()
            losses.append(float(loss.detach()))
        if step == 0:
            gradients = gradients_of(generator)
        norm = whole(nn.utils.clip_grad_norm_(generator.parameters(), 1.0))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
    return {
        "losses": losses,
        "gradients": gradients,
        "norm": norm.detach(),
        "weights": {key: whole(each.detach()) for key, each in generator.named_parameters()},
        "averages": {key: whole(each) for key, each in average.averages.items()},
    }


def compare(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    sums = [sum(each) for each in zip(*(rank["losses"] for rank in found))]
    assert sums == pytest.approx(expected["losses"], rel=1e-9)
    norms = torch.stack([rank["norm"] for rank in found])
    assert torch.allclose(norms, expected["norm"].expand_as(norms), rtol=1e-7)
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
    """Each method with half of the settings sharded, and with the others replicated."""
    half = SETTINGS[:2] if (METHODS.index(name) + (shape == "shard")) % 2 else SETTINGS[2:]
    parallel = ParallelConfig(replicate=2 if shape == "replicate" else 1)
    for (kind, block), matrices in zip(half, ("muon", "adamw")):
        found = two_ranks.run(trained, name, kind, block, parallel, matrices)
        compare(found, trained(name, kind, block, parallel, matrices))


@pytest.mark.four_ranks
@pytest.mark.parametrize("name", METHODS)
def test_four_ranks_in_two_groups_are_one(name: str, four_ranks: Ranks) -> None:
    """HSDP: groups of two that share a model, and hold the same."""
    parallel = ParallelConfig(replicate=2, shard=2)
    found = four_ranks.run(trained, name, "text", "default", parallel, "muon")
    compare(found, trained(name, "text", "default", parallel, "muon"))


def trained_tokenizer(
    learned_by: str, parallel: ParallelConfig, restart_share: float
) -> dict[str, Any]:
    """Three steps of a tokenizer with critics, some of whose codes may begin anew."""
    quantizer = replace(
        TINY.quantizer, learned_by=learned_by, restart_share=restart_share, ema_decay=0.8
    )  # type: ignore[arg-type]
    torch.manual_seed(0)
    tokenizer = Tokenizer(replace(TINY, quantizer=quantizer))
    learner = Learner(tokenizer)
    with torch.no_grad():
        tokenizer.quantizer.codebook.set_codes(torch.randn(16, 4))
    rank, world_size = rank_and_world_size()
    if torch.distributed.is_initialized():
        distribute(learner, (), make_mesh(parallel, torch.device("cpu")), parallel)
    optimizers = [
        each
        for part in (tokenizer, learner.discriminator)
        for each in make_optimizers(part, lambda name, each: each.ndim >= 4, OptimizerConfig())  # type: ignore[arg-type]
    ]
    average = WeightAverage(tokenizer, 0.9)
    frames = torch.rand(6, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    own = frames[slice(*PARTS[world_size][rank : rank + 2])]
    losses, gradients = [], {}
    for step in range(3):
        draws = torch.Generator().manual_seed(step)
        loss = learner(own, 0.9, draws).loss * len(own)
        (loss * world_size / NUM_CLIPS).backward()
        renewed = tokenizer.quantizer.codebook.renewed()
        forget(optimizers, renewed)
        if step == 0:
            gradients = gradients_of(learner)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        put(renewed)
        average.update(renewed)
        losses.append(float(loss.detach()))
    return {
        "losses": losses,
        "gradients": gradients,
        "weights": {key: whole(each) for key, each in learner.state_dict().items()},
        "averages": {key: whole(each) for key, each in average.averages.items()},
    }


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """In one piece."""
    return {
        key: whole(each.grad).clone()
        for key, each in module.named_parameters()
        if each.grad is not None
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize("learned_by", ["ema", "gradient"])
@pytest.mark.parametrize("replicate", [1, 2])
def test_two_ranks_are_one_for_the_tokenizer(
    learned_by: str, replicate: int, two_ranks: Ranks
) -> None:
    _compare_tokenizers(learned_by, ParallelConfig(replicate=replicate), two_ranks)


@pytest.mark.four_ranks
def test_four_ranks_in_two_groups_are_one_for_the_tokenizer(four_ranks: Ranks) -> None:
    _compare_tokenizers("ema", ParallelConfig(replicate=2, shard=2), four_ranks)


def _compare_tokenizers(learned_by: str, parallel: ParallelConfig, ranks: Ranks) -> None:
    """In float32, which its quantizer computes in. Codes that begin anew do so on the first rank's
    clips, so with them the ranks are compared with each other."""
    expected = trained_tokenizer(learned_by, parallel, 0.0)
    found = ranks.run(trained_tokenizer, learned_by, parallel, 0.0)
    sums = [sum(each) for each in zip(*(rank["losses"] for rank in found))]
    assert sums == pytest.approx(expected["losses"], rel=1e-4)
    for what, tolerance in (("gradients", 1e-5), ("weights", 1e-4), ("averages", 1e-4)):
        for key, value in expected[what].items():
            torch.testing.assert_close(
                found[0][what][key], value, rtol=1e-3, atol=tolerance, msg=f"{what} of {key}"
            )
    anew = ranks.run(trained_tokenizer, learned_by, parallel, 0.3)
    for what in ("weights", "averages"):
        for key, value in anew[0][what].items():
            assert all(torch.equal(each[what][key], value) for each in anew[1:]), key


def outputs(
    name: str, parallel: ParallelConfig, dtype: torch.dtype | None, is_double: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a batch, and the gradients of their squares."""
    variant = variant_of(name)
    generator = make_generator(variant, "text", BLOCKS["default"])
    generator = generator.double() if is_double else generator
    if torch.distributed.is_initialized():
        generator = sharded(generator, parallel, dtype)
    codes = random_codes(variant.schedule)
    logits = generator.by_cell(known_of(generator, codes), encoded("text"), variant.schedule)
    logits.float().square().mean().backward()
    return logits.detach(), gradients_of(generator)


def alone_outputs(name: str, parallel: ParallelConfig, dtype: torch.dtype | None) -> Any:
    with alone():
        return outputs(name, parallel, dtype)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_is_the_same(name: str, recompute: str) -> None:
    expected = outputs(name, ParallelConfig(), None)
    found = alone_outputs(name, ParallelConfig(recompute=recompute), None)  # type: ignore[arg-type]
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-9, atol=1e-12)


def saved_values(recompute: str) -> int:
    """Numbers that the forward pass of a block keeps for the backward pass."""
    variant = variant_of("raster")
    parallel = ParallelConfig(recompute=recompute)  # type: ignore[arg-type]
    kept = [0]

    def keep(tensor: Tensor) -> Tensor:
        kept[0] += tensor.numel()
        return tensor

    with alone():
        generator = sharded(make_generator(variant, "class"), parallel)
        known = known_of(generator, random_codes(variant.schedule))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            generator(known, encoded("class"), variant.schedule)
    return kept[0]


def test_less_is_kept_the_more_is_computed_again() -> None:
    none, full = saved_values("none"), saved_values("full")
    assert full < none / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks
def test_compiled_blocks_compute_the_same() -> None:
    expected = outputs("raster", ParallelConfig(), None)
    found = alone_outputs("raster", ParallelConfig(compile=True), None)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    for key, value in expected[1].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-6, atol=1e-9)


def half(name: str, replicate: int) -> tuple[Tensor, dict[str, Tensor], set[str]]:
    parallel = ParallelConfig(replicate=replicate)
    with alone():
        logits, gradients = outputs(name, parallel, torch.bfloat16, is_double=False)
    return logits, gradients, {str(each.dtype) for each in gradients.values()}


@pytest.mark.multiprocess
@pytest.mark.parametrize("replicate", [1, 2])
@pytest.mark.parametrize("name", ["raster", "arpg", "next_scale"])
def test_in_bfloat16_weights_and_gradients_stay_in_float32(
    name: str, replicate: int, two_ranks: Ranks
) -> None:
    """And any number of ranks computes the same."""
    expected, whole_gradients = outputs(name, ParallelConfig(), None, is_double=False)
    of_one, gradients, _ = half(name, 1)
    assert of_one.dtype == torch.bfloat16
    assert (of_one.float() - expected).norm() < 0.05 * expected.norm()
    for logits, found, dtypes in two_ranks.run(half, name, replicate):
        assert dtypes == {"torch.float32"}
        assert torch.equal(logits, of_one)
        for key, value in gradients.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
            difference = (value - whole_gradients[key]).norm()
            assert difference < 0.1 * whole_gradients[key].norm() + 1e-4, key


def collectives(batches: int, gather_twice: bool) -> dict[str, int]:
    """How often the ranks exchange something in a step of so many batches."""
    variant = variant_of("raster")
    parallel = ParallelConfig(gather_twice=gather_twice)
    generator = sharded(make_generator(variant, "class"), parallel)
    seen = {}
    for _ in range(2):  # the first step is set up by the way
        with CommDebugMode() as mode:
            for number in range(batches):
                add_up_gradients(generator, parallel, number == batches - 1)
                loss_of(generator, variant, "class", slice(0, 2), number).backward()
        seen = {str(each): count for each, count in mode.get_comm_counts().items()}
    return seen


@pytest.mark.multiprocess
@pytest.mark.parametrize(("gather_twice", "count"), [(False, 6), (True, 8)])
def test_gradients_of_several_batches_cost_no_more_communication(
    gather_twice: bool, count: int, two_ranks: Ranks
) -> None:
    """Two blocks and the rest are gathered and scattered; blocks may be gathered twice."""
    one, _ = two_ranks.run(collectives, 1, gather_twice)
    three, _ = two_ranks.run(collectives, 3, gather_twice)
    assert one == three
    assert sum(one.values()) == count
