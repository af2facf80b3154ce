"""Known regions: which pixels of a clip stay, and which cells of its codes follow from them.

A cell is known when every pixel of its footprint is: the pixels that it stands for when the clip is
divided evenly among the cells of its scale (frame 0 belongs to latent frame 0, every further latent
frame to as many frames as the temporal stride). Footprints that end inside a pixel count it whole.
So the few cells of a coarse scale are known only if almost everything is, as in VAR's editing, and
what they say of the known region is made anew.

Pixels that are not known are never looked at: before the clip is encoded they are painted over with
their surroundings. (The encoder sees beyond footprints; cells at the border see that paint.)
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.edit_config import EditConfig


def known_pixels(
    config: EditConfig,
    shape: tuple[int, int, int],
    num_there: int,
    temporal_stride: int,
    mask: Bool[np.ndarray, "h w"] | None,
) -> Bool[np.ndarray, "t h w"]:
    """The pixels to keep of a clip of `shape`; the source has its first `num_there` frames.

    `mask` is white where pixels are made. UserError for regions outside of the clip, for frames
    that are not there or end inside a latent frame, and when all would be kept.
    """
    num_frames, height, width = shape
    region = _region(config, height, width, mask)
    known = np.zeros(shape, dtype=bool)
    if region is not None:
        known[:num_there] = region
    if config.first_frames is not None:
        _check_first_frames(config.first_frames, num_frames, num_there, temporal_stride)
        known[: config.first_frames] = True
    elif region is None:
        known[:num_there] = True
    if known.all():
        raise UserError(
            "the whole clip would be kept: say what to make with --hide, --keep, --mask or "
            "--first_frames"
        )
    return known


def known_cells(
    schedule: Schedule, known: Bool[np.ndarray, "t h w"], temporal_stride: int
) -> Bool[np.ndarray, " l"]:
    """The cells all of whose pixels are known."""
    starts = [0, *range(1, len(known), temporal_stride), len(known)]
    frames = np.stack([known[start:stop].all(axis=0) for start, stop in pairwise(starts)])
    cells = []
    for scale in schedule.scales:
        found = frames[scale.t0 : scale.t1]
        for axis, count in enumerate(scale.shape):
            found = _all_in_parts(found, axis, count)
        cells.append(found.ravel())
    return np.concatenate(cells)


def made_pixels(
    schedule: Schedule, cells: Bool[np.ndarray, " l"], shape: tuple[int, int, int], stride: int
) -> Bool[np.ndarray, "t h w"]:
    """The pixels of the finest cells that are not known, for pictures."""
    made = np.zeros((schedule.num_latent_frames, *shape[1:]), dtype=bool)
    for pyramid in schedule.pyramids:
        scale = pyramid[-1]
        stop = schedule.offsets[schedule.scales.index(scale) + 1]
        grid = ~cells[stop - scale.num_tokens : stop].reshape(scale.shape)
        rows = np.arange(shape[1]) * scale.h // shape[1]
        columns = np.arange(shape[2]) * scale.w // shape[2]
        times = np.arange(scale.t1 - scale.t0) * scale.t // (scale.t1 - scale.t0)
        made[scale.t0 : scale.t1] = grid[times][:, rows][:, :, columns]
    return np.concatenate([made[:1], made[1:].repeat(stride, axis=0)])[: shape[0]]


def painted_over(
    frames: UInt8[np.ndarray, "n h w 3"], known: Bool[np.ndarray, "t h w"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """A clip whose pixels that are not known are made of those that are: near ones of their frame
    or, in frames without any, those of the nearest frame with some."""
    with_some = np.flatnonzero(known.any(axis=(1, 2)))
    if not len(with_some):
        return np.full((*known.shape, 3), 128, dtype=np.uint8)
    weight = known[with_some].astype(np.float32)[..., None]
    spread = _spread(frames[with_some] * weight, weight)
    nearest = np.abs(np.arange(len(known))[:, None] - with_some).argmin(axis=1)
    return spread.round().astype(np.uint8)[nearest]


def _check_first_frames(first: int, num_frames: int, num_there: int, stride: int) -> None:
    limit = min(num_frames, num_there)
    if not 1 <= first <= limit:
        raise UserError(
            f"first_frames ({first}) must lie in [1, {limit}]: the clip has {num_frames} frames, "
            f"the source {num_there}"
        )
    if (first - 1) % stride:
        below = 1 + (first - 1) // stride * stride
        raise UserError(
            f"first_frames ({first}) must be 1 + a multiple of {stride}; nearest are {below} and "
            f"{below + stride}"
        )


def _region(
    config: EditConfig, height: int, width: int, mask: Bool[np.ndarray, "h w"] | None
) -> Bool[np.ndarray, "h w"] | None:
    """Where every frame is known; None where no region was given."""
    if mask is not None:
        return ~mask
    for name, rectangle in (("hide", config.hide), ("keep", config.keep)):
        if rectangle is not None:
            top, left, bottom, right = rectangle
            if bottom > height or right > width:
                raise UserError(
                    f"{name} ({list(rectangle)}) must lie inside the clip, which has {height} x "
                    f"{width} pixels: bottom at most {height}, right at most {width}"
                )
            inside = np.zeros((height, width), dtype=bool)
            inside[top:bottom, left:right] = True
            return inside if name == "keep" else ~inside
    return None


def _all_in_parts(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Whether all values are true in each of `count` even parts of an axis."""
    size = values.shape[axis]
    parts = [
        values.take(range(part * size // count, -(-(part + 1) * size // count)), axis).all(axis)
        for part in range(count)
    ]
    return np.stack(parts, axis)


def _spread(
    sums: Float[np.ndarray, "n h w 3"], weight: Float[np.ndarray, "n h w 1"]
) -> Float[np.ndarray, "n h w 3"]:
    """The weighted means and, where there is no weight, those of the next coarser grid that has."""
    means = sums / np.maximum(weight, 1e-6)
    if weight.min() > 0:
        return means
    height, width = weight.shape[1:3]
    even = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    coarse = [np.pad(each, even) for each in (sums, weight)]
    for axis in (1, 2):
        coarse = [
            each.take(range(0, each.shape[axis], 2), axis)
            + each.take(range(1, each.shape[axis], 2), axis)
            for each in coarse
        ]
    enlarged = _spread(*coarse).repeat(2, axis=1).repeat(2, axis=2)
    return np.where(weight > 0, means, enlarged[:, :height, :width])
