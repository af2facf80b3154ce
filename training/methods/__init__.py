"""Methods: an order and a layout each; no attention, no loop.

next_scale  a scale a step, asked with the partial reconstruction (VAR); large scales may take
            several steps, in any inner order
raster      a cell a step, asked with the code before it
par         a cell of every region a step, asked with the codes of the step before (PAR)
nar         all cells at one distance a step, asked with their neighbours by a head per axis (NAR)
arpg        cells in any order, asked by queries in a second stack (ARPG)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tokenizer.scales import Schedule
from training.layout import Layout
from training.method_config import MethodConfig
from training.methods import arpg, nar, next_scale, shift


class Method(Protocol):
    """The layout for a schedule, so many rows of condition, the settings, and whether to train.

    `given`, bool [num_tokens]: cells that need not be generated, which a random order puts first.
    """

    def __call__(
        self,
        schedule: Schedule,
        num_prefix: int,
        method: MethodConfig,
        training: bool,
        given: np.ndarray | None = None,
    ) -> Layout: ...


METHODS: dict[str, Method] = {
    "next_scale": next_scale.layout,
    "raster": shift.raster,
    "par": shift.par,
    "nar": nar.layout,
    "arpg": arpg.layout,
}
