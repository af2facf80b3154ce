"""What a random order is for: a gap is filled better from both sides than from the left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.generators import make_vocabulary
from tokenizer.scales import single_grid
from training.config import GuidanceConfig, ModelConfig, SampleConfig
from training.generator import Generator, Known
from training.given import Given
from training.loop_config import OptimizerConfig
from training.method_config import MethodConfig
from training.optimizer import make_optimizers
from training.sampler import sampling
from training.tasks.generator import is_matrix

ROW = single_grid(1, 1, 3)
GAP = 1
GREEDY = SampleConfig(temperature=0.0, guidance=GuidanceConfig(scale=1.0))


def clips(count: int, seed: int) -> Tensor:
    """Rows of three codes: two of 3 values, and between them the one that says which they are."""
    left, right = torch.randint(3, (2, count), generator=torch.Generator().manual_seed(seed))
    return torch.stack([left, left + 3 * right, right], dim=1)


def no_prompts(codes: Tensor) -> Tensor:
    return torch.zeros(len(codes), 0, dtype=torch.int64)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """ARPG after a few steps on such rows, each in an order of its own."""
    torch.manual_seed(0)
    model = ModelConfig(width=32, depth=2, heads=2)
    generator = Generator(model, MethodConfig(name="arpg"), ROW, make_vocabulary("none"), 9, 0)
    settings = OptimizerConfig(learning_rate=0.01, matrix_learning_rate=0.01)
    optimizers = make_optimizers(generator, is_matrix, settings)
    order, random = generator.layout_for(ROW).order, np.random.default_rng(0)
    for step in range(60):
        codes = clips(32, step)
        sequence = torch.from_numpy(np.stack([order.drawn(random) for _ in codes]))
        logits = generator.by_cell(Known(sequence, codes), no_prompts(codes), ROW)
        generator.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
    return generator.eval()


def share_filled_right(generator: Generator, known: list[int], sequence: list[int]) -> float:
    """How often the gap of new clips gets its own code, when it is drawn right after `known`."""
    codes = clips(200, 1000)
    cells = np.isin(np.arange(3), known)
    filled = sampling(
        generator,
        no_prompts(codes),
        ROW,
        GREEDY,
        range(len(codes)),
        sequence=torch.tensor([sequence]),
        given=Given(codes, cells),
    ).codes()
    assert torch.equal(filled[:, known], codes[:, known])
    return float((filled[:, GAP] == codes[:, GAP]).float().mean())


def test_a_gap_is_filled_better_from_both_sides_than_from_the_left(generator: Generator) -> None:
    from_both = share_filled_right(generator, [0, 2], [0, 2, GAP])
    from_the_left = share_filled_right(generator, [0], [0, GAP, 2])
    assert from_both > 0.95
    assert from_the_left < 0.5
