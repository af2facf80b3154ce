"""Methods: an order and a layout each; no attention, no loop.

next_scale   a scale a step, asked with the partial reconstruction (VAR)
raster       a cell a step, asked with the code before it
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizer.scales import Schedule
from training.layout import Layout
from training.methods import next_scale, raster

METHODS: dict[str, Callable[[Schedule, int], Layout]] = {
    "next_scale": next_scale.layout,
    "raster": raster.layout,
}
