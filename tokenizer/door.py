"""What a tokenizer takes, and what it refuses: pixels, frames, latents, codes, one error each.

Every public entry of the tokenizer checks here what it was given; inside, it is trusted. Shapes of
clips and sizes of tiles are the settings' to judge (`check_clip_shape`, `check_tile`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.finite import NotFinite
from tokenizer.scales import Schedule
from tokenizer.settings import UserError

ID_TYPES = (torch.int64, torch.int32)


def check_pixels(frames: Tensor) -> None:
    """UserError unless these are uint8 [b, t, h, w, 3]."""
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise UserError(f"frames ({_kind(frames)}) must be uint8 [b, t, h, w, 3]")


def check_frames(frames: Tensor, dtype: torch.dtype) -> None:
    """UserError unless these are numbers [b, 3, t, h, w] of the dtype that the model has."""
    if frames.dtype != dtype or frames.ndim != 5 or frames.shape[1] != 3:
        raise UserError(
            f"frames ({_kind(frames)}) must be {_name(dtype)} [b, 3, t, h, w] in [-1, 1], "
            "as `signed` of tokenizer.model makes them from pixels"
        )
    check_finite(frames, "its frames are NaN or infinite; pixels scaled to [-1, 1] are needed")


def check_latents(latents: Tensor, num_channels: int, schedule: Schedule) -> None:
    """UserError unless these are numbers [b, num_channels, t, h, w] on the schedule's grid."""
    if not latents.is_floating_point() or latents.ndim != 5 or latents.shape[1] != num_channels:
        raise UserError(
            f"latents ({_kind(latents)}) must be float [b, {num_channels}, t, h, w]: "
            "those of another tokenizer do not fit"
        )
    schedule.check_grid(*latents.shape[2:])
    check_finite(latents)


def check_codes(codes: Tensor, schedule: Schedule, codebook_size: int) -> None:
    """UserError unless these are codes of the codebook, one for each place of the schedule."""
    check_places(codes, schedule)
    if codes.dtype not in ID_TYPES:
        raise UserError(f"codes ({_kind(codes)}) must be {' or '.join(map(_name, ID_TYPES))}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise UserError(
            f"codes ({int(codes.min())} to {int(codes.max())}) must lie in "
            f"[0, {codebook_size}): they are another tokenizer's"
        )


def check_places(codes: Tensor, schedule: Schedule) -> None:
    """UserError unless there is a code for each place of the schedule."""
    if codes.ndim != 2 or codes.shape[1] != schedule.num_tokens:
        raise UserError(
            f"codes of shape {list(codes.shape)} do not fit the schedule: "
            f"[b, {schedule.num_tokens}] is needed"
        )


def check_num_scales(num_scales: int | None) -> None:
    """UserError unless something is left to decode."""
    if num_scales is not None and num_scales < 1:
        raise UserError(f"num_scales ({num_scales}) must be at least 1, or None for all of them")


def check_finite(values: Tensor, reason: str | None = None) -> None:
    """NotFinite for the first clip with a value that is no number."""
    are_finite = values.isfinite().flatten(1).all(dim=1)
    if not are_finite.all():
        row = int(are_finite.logical_not().nonzero()[0])
        raise NotFinite(row) if reason is None else NotFinite(row, reason)


def _kind(values: Tensor) -> str:
    return f"{_name(values.dtype)} {list(values.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
