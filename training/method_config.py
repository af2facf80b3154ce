"""The order in which a generator makes the cells of a clip, as settings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from tokenizer.settings import UserError, setting
from training.step_sizes import StepSizes


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The order of generation, and how cells are asked for."""

    name: Literal["next_scale", "raster", "par", "nar", "arpg"] = setting(
        "next_scale",
        "a scale a step; a cell a step; a cell of every region a step; all cells at one distance a "
        "step; or any cells a step in random order",
    )
    regions: tuple[int, int, int] = setting(
        (1, 2, 2), "par, inner par: regions that the axes t, h, w are cut into"
    )
    num_steps: int | None = setting(
        None, "arpg, inner random: steps of a clip or scale, at most (and by default) one per cell"
    )
    sizes: StepSizes = setting(
        "arccos", "arpg, inner random: how the cells are shared out over those steps"
    )
    inner: Literal["all", "raster", "par", "nar", "random"] = setting(
        "all", "next_scale: the order inside large scales"
    )
    inner_cells: int = setting(16, "inner: scales of at least so many cells are large")
    frame_causal: bool = setting(
        False,
        "nar, arpg, inner: frame after frame, each in this order by itself (nar: then its first "
        "cell is asked by what sees the frames before, and nothing along t)",
    )
    time_head: bool = setting(
        False,
        "nar: a head along t also for images and frame_causal, as in published models of video",
    )

    def __post_init__(self) -> None:
        if len(self.regions) != 3 or min(self.regions) < 1:
            raise ValueError(f"regions ({list(self.regions)}) must be three numbers of at least 1")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps ({self.num_steps}) must be at least 1")
        if self.inner_cells < 1:
            raise ValueError(f"inner_cells ({self.inner_cells}) must be at least 1")
        self._refuse_what_is_without_use()

    @property
    def is_random(self) -> bool:
        """Whether cells come in an order drawn for each sample, in any number of steps."""
        return self.name == "arpg" or (self.name, self.inner) == ("next_scale", "random")

    def _refuse_what_is_without_use(self) -> None:
        inner = self.inner if self.name == "next_scale" else None
        has_inner = inner not in (None, "all")
        used = {
            "regions": "par" in (self.name, inner),
            "num_steps": self.is_random,
            "sizes": self.is_random,
            "inner": self.name == "next_scale",
            "inner_cells": has_inner,
            "frame_causal": has_inner or self.name in ("nar", "arpg"),
            "time_head": self.name == "nar",
        }
        for field in fields(self):
            value, users = getattr(self, field.name), field.metadata["help"].split(":")[0]
            if value != field.default and not used.get(field.name, True):
                raise ValueError(
                    f"{field.name} ({value}) is for {users}; {self.name}"
                    f"{f' with inner {inner}' if inner else ''} has no use for it"
                )

    def in_steps(self, num_steps: int | None, sizes: StepSizes | None) -> MethodConfig:
        """The same method in other steps (None: as they are); UserError when its order fixes them.

        Cells of a random order are asked without looking at one another, or at those of their own
        step only, so one set of weights serves any number of steps.
        """
        if num_steps is None and sizes is None:
            return self
        if not self.is_random:
            raise UserError(
                "num_steps and sizes are for random orders (method arpg, or next_scale with inner "
                f"random); the order of {self.name} says itself how many steps it takes: leave "
                "them out"
            )
        return replace(self, num_steps=num_steps or self.num_steps, sizes=sizes or self.sizes)
