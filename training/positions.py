"""Where the cells of clips stand, for clips of several shapes by one generator.

A generator is made for one schedule, its own. It knows those that begin like it, such as the image
of a video; and, where the order is a rule (raster, par, nar, arpg), clips on other grids of cells:

    rope     on any grid; an image is then the first frame of a video
    table    on grids that fit inside its own: a cell has the vector of the one at its t, h, w

Next-scale prediction has learned its scales. What is looked up is made once for each schedule, and
belongs to no module: it is a function of what it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.scales import Schedule, single_grid
from tokenizer.settings import UserError
from training.block_config import BlockConfig
from training.config import ModelConfig
from training.rotary import angles


def schedule_for_all(schedules: Sequence[Schedule], method: str, position: str) -> Schedule:
    """What a generator of clips of all these is made for; the first of them is the longest.

    That is the first, or where it has a table the smallest grid that they all fit in. It need not
    be one of them: clips of 2 x 4 and of 4 x 2 cells fit in 4 x 4.
    """
    grids = [each.grid for each in schedules if each.grid is not None]
    if method == "next_scale" or position != "table" or len(grids) < len(schedules):
        return schedules[0]
    t, h, w = (max(sides) for sides in zip(*grids))
    same = (each for each, grid in zip(schedules, grids) if grid == (t, h, w))
    return next(same, single_grid(t, h, w))


def check_schedule(schedule: Schedule, own: Schedule, method: str, position: str) -> None:
    """UserError when a generator that is made for `own` has no positions for `schedule`."""
    if _begins(schedule, own):
        return
    if method == "next_scale" or own.grid is None or schedule.grid is None:
        raise UserError(
            f"{method} has learned its scales, {_scales(own)}; {_scales(schedule)} is not the "
            "beginning of them: clips of any shape are for raster, par, nar and arpg on codes of "
            "one grid"
        )
    if position == "table" and any(a > b for a, b in zip(schedule.grid, own.grid)):
        raise UserError(
            f"a grid of {_grid(schedule.grid)} cells does not fit in {_grid(own.grid)}, for each "
            "cell of which this generator has learned a vector; for larger ones it needs rotary "
            "positions: train with --model.block.position rope"
        )


def rotations(
    schedule: Schedule, own: Schedule, config: ModelConfig, like: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "rows p"], Float[Tensor, "rows p"]]:
    """Cosines and sines of every cell, of the type of `like` and on its device.

    The last row is for what stands at no cell.
    """
    has_time = own.num_latent_frames > 1
    schedule = own if _begins(schedule, own) else schedule
    head_width = config.width // config.heads
    return _rotations(schedule, has_time, head_width, config.block, like.device, like.dtype)


def cells_of_table(
    cells: Int[Tensor, "#b r"], schedule: Schedule, own: Schedule
) -> Int[Tensor, "#b r"]:
    """The cells of `own` at the same t, h, w."""
    return cells if _begins(schedule, own) else _cells_inside(schedule, own, cells.device)[cells]


@lru_cache(maxsize=64)
def level_of_cells(schedule: Schedule, device: torch.device) -> Int[Tensor, " cells"]:
    """Which scale of its pyramid each cell belongs to, from 0."""
    level = np.empty(len(schedule.scales), dtype=np.int64)
    for number, members in enumerate(schedule.levels):
        level[list(members)] = number
    return torch.from_numpy(level[schedule.scale_of_token]).to(device)


def _begins(schedule: Schedule, own: Schedule) -> bool:
    return schedule.scales == own.scales[: len(schedule.scales)]


@lru_cache(maxsize=64)
def _rotations(
    schedule: Schedule,
    has_time: bool,
    head_width: int,
    block: BlockConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    table = torch.from_numpy(angles(schedule, head_width, block.rope_base, has_time))
    still = table.new_zeros(1, table.shape[1])
    cosines = torch.cat([table.cos(), still.cos() * (block.rope_outside == "still")])
    sines = torch.cat([table.sin(), still])
    return cosines.float().to(device, dtype), sines.float().to(device, dtype)


@lru_cache(maxsize=64)
def _cells_inside(schedule: Schedule, own: Schedule, device: torch.device) -> Tensor:
    assert schedule.grid is not None
    assert own.grid is not None
    at = np.indices(schedule.grid).reshape(3, -1)
    return torch.from_numpy(np.ravel_multi_index(tuple(at), own.grid)).to(device)


def _scales(schedule: Schedule) -> str:
    return ", ".join(_grid(scale.shape) for scale in schedule.scales)


def _grid(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
