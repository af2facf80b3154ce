"""Guidance: how far each step of sampling goes beyond the conditional model.

    logits = unconditional + s * (conditional - unconditional)

Every published schedule is s as a function of where sampling stands: the same throughout (PAR,
NAR), linear in the share of cells done (ARPG), from 1 up over the steps (VAR), or only within an
interval. Scales do not carry over from one schedule to another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.config import GuidanceConfig


@dataclass(frozen=True)
class Moment:
    """Where sampling stands: the loop step, and the cells done before and after it."""

    step: int
    num_steps: int
    cells_before: int
    cells_after: int
    num_cells: int

    @property
    def share_of_steps(self) -> float:
        """0 in the first step, 1 in the last."""
        return self.step / max(self.num_steps - 1, 1)


def is_guided(guidance: GuidanceConfig) -> bool:
    """Whether the schedule ever leaves scale 1, which is the conditional model itself."""
    return guidance.scale != 1


def guidance_scale(guidance: GuidanceConfig, moment: Moment) -> float:
    """The scale s in this step."""
    return _SCHEDULES[guidance.kind](guidance, moment)


def _constant(guidance: GuidanceConfig, moment: Moment) -> float:
    return guidance.scale


def _linear(guidance: GuidanceConfig, moment: Moment) -> float:
    return 1 + (guidance.scale - 1) * moment.cells_after / moment.num_cells


def _ramp(guidance: GuidanceConfig, moment: Moment) -> float:
    return 1 + (guidance.scale - 1) * moment.share_of_steps


def _interval(guidance: GuidanceConfig, moment: Moment) -> float:
    share = moment.cells_before / moment.num_cells
    return guidance.scale if guidance.start <= share < guidance.end else 1.0


_SCHEDULES: dict[str, Callable[[GuidanceConfig, Moment], float]] = {
    "constant": _constant,
    "linear": _linear,
    "ramp": _ramp,
    "interval": _interval,
}
