"""Methods: an order and a layout each; no attention, no loop.

next_scale  a scale a step, asked with the partial reconstruction (VAR); large scales may take
            several steps, in any inner order
raster      a cell a step, asked with the code before it
par         a cell of every region a step, asked with the codes of the step before (PAR)
nar         all cells at one distance a step, asked with their neighbours by a head per axis (NAR)
arpg        cells in any order, asked by queries in a second stack (ARPG)
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizer.scales import Schedule
from training.layout import Layout
from training.method_config import MethodConfig
from training.methods import arpg, nar, next_scale, shift

METHODS: dict[str, Callable[[Schedule, int, MethodConfig, bool], Layout]] = {
    "next_scale": next_scale.layout,
    "raster": shift.raster,
    "par": shift.par,
    "nar": nar.layout,
    "arpg": arpg.layout,
}
"""The layout for a schedule, so many rows of condition, the settings, and whether to train."""
