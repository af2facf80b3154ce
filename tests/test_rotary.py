"""Rotary positions are a function of where cells are, on grids of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.scales import image_and_clip, single_grid
from training.rotary import Rotation, angles, rotated


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 3), (1, 7), (4, 4)])
@pytest.mark.parametrize("head_width", [8, 32])
def test_half_of_the_pairs_of_an_image_turn_by_the_row_and_half_by_the_column(
    height: int, width: int, head_width: int
) -> None:
    """LlamaGen's table, as the golden fixtures' README defines it, on grids that are no squares."""
    pairs = head_width // 4
    frequency = 100.0 ** (-2 * np.arange(pairs) / (head_width // 2))
    found = angles(single_grid(1, height, width), head_width, 100.0)
    for cell, (row, column) in enumerate(np.ndindex(height, width)):
        expected = np.concatenate([row * frequency, column * frequency])
        np.testing.assert_allclose(found[cell], expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", [single_grid(3, 2, 5), image_and_clip(3, (1, 2, 4))])
def test_products_of_turned_vectors_depend_on_how_far_apart_they_are(schedule) -> None:
    turned = torch.from_numpy(angles(schedule, 16, 100.0))
    query, key = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    queries, keys = (
        rotated(
            each.expand(1, 1, len(turned), -1), Rotation(turned.cos()[None], turned.sin()[None])
        )
        for each in (query, key)
    )
    products = (queries @ keys.mT)[0, 0]
    apart = turned[:, None] - turned[None]
    at_once = rotated(
        query.expand(1, 1, apart.shape[0] ** 2, -1),
        Rotation(apart.flatten(0, 1).cos()[None], apart.flatten(0, 1).sin()[None]),
    )
    torch.testing.assert_close(products.flatten(), (at_once @ key)[0, 0])
