"""Schedules: how the codes of one clip are laid out, as data, without torch.

A *scale* is one grid of codes: it covers latent frames [t0, t1) with a grid of t x h x w codes. A
*pyramid* is a run of scales over the same latent frames, coarse to fine; the quantizer sums its
scales. A *schedule* is the pyramids of a clip in time order. An image is one pyramid over latent
frame 0; a video is that pyramid and then clip pyramids over the frames that follow; a plain grid is
one pyramid of one scale. Codes are stored flat: scales in schedule order, then t, h, w in C order.

    schedule = image_and_clip(num_latent_frames=3, sizes=(1, 2, 4))
    schedule.num_tokens          # 21 + 2 * 21 = 63
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import numpy as np

Size = int | tuple[int, int]
Codes = TypeVar("Codes")  # a numpy array or a torch tensor: anything with shape and reshape


@dataclass(frozen=True, order=True)
class Scale:
    """A grid of t x h x w codes over latent frames [t0, t1)."""

    t0: int
    t1: int
    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if not 0 <= self.t0 < self.t1:
            raise ValueError(f"scale covers no frames: [{self.t0}, {self.t1})")
        if min(self.t, self.h, self.w) < 1:
            raise ValueError(f"scale {self.t}x{self.h}x{self.w} has an empty axis")
        if self.t > self.t1 - self.t0:
            raise ValueError(f"scale has {self.t} code frames over {self.t1 - self.t0} frames")

    @property
    def num_tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.t, self.h, self.w


@dataclass(frozen=True)
class Schedule:
    """The scales of a clip in the order in which their codes are stored."""

    scales: tuple[Scale, ...]

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("a schedule needs at least one scale")
        end = 0
        for pyramid in self.pyramids:
            if pyramid[0].t0 != end:
                raise ValueError(f"pyramid starts at latent frame {pyramid[0].t0}, not {end}")
            end = pyramid[0].t1

    @cached_property
    def pyramids(self) -> tuple[tuple[Scale, ...], ...]:
        """Consecutive scales over the same latent frames."""
        grouped: list[list[Scale]] = []
        for scale in self.scales:
            if grouped and (grouped[-1][0].t0, grouped[-1][0].t1) == (scale.t0, scale.t1):
                grouped[-1].append(scale)
            else:
                grouped.append([scale])
        return tuple(tuple(pyramid) for pyramid in grouped)

    @property
    def num_latent_frames(self) -> int:
        return self.scales[-1].t1

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each scale starts in the flat codes; the last entry is their number."""
        return (0, *accumulate(scale.num_tokens for scale in self.scales))

    @cached_property
    def scale_of_token(self) -> np.ndarray:
        """int64 [num_tokens]: the index of the scale that each stored code belongs to."""
        return np.repeat(np.arange(len(self.scales)), [s.num_tokens for s in self.scales])

    @cached_property
    def coordinates(self) -> np.ndarray:
        """int64 [num_tokens, 3]: t, h, w of each stored code inside its own scale."""
        grids = [np.indices(scale.shape).reshape(3, -1).T for scale in self.scales]
        return np.concatenate(grids)

    def split(self, codes: Codes) -> list[Codes]:
        """Flat codes [..., num_tokens] as one [..., t, h, w] per scale."""
        shape = tuple(codes.shape)  # type: ignore[attr-defined]
        if shape[-1] != self.num_tokens:
            raise ValueError(f"{shape[-1]} codes do not fit a schedule of {self.num_tokens}")
        return [
            codes[..., start : start + scale.num_tokens].reshape(*shape[:-1], *scale.shape)  # type: ignore[index]
            for start, scale in zip(self.offsets, self.scales)
        ]

    def to_list(self) -> list[list[int]]:
        """Plain lists for JSON: [t0, t1, t, h, w] per scale."""
        return [[s.t0, s.t1, s.t, s.h, s.w] for s in self.scales]

    @classmethod
    def from_list(cls, rows: Iterable[Sequence[int]]) -> Schedule:
        """The inverse of `to_list`; raises ValueError on anything that is not a schedule."""
        scales = []
        for row in rows:
            if len(row) != 5 or not all(type(value) is int for value in row):
                raise ValueError(f"a scale is five integers t0 t1 t h w, not {row!r}")
            scales.append(Scale(*row))
        return cls(tuple(scales))


def single_grid(t: int, h: int, w: int) -> Schedule:
    """One scale: what a plain VQ tokenizer gives (PAR, NAR and ARPG work on it)."""
    return Schedule((Scale(0, t, t, h, w),))


def image_and_clip(
    num_latent_frames: int,
    sizes: Sequence[Size],
    clip_sizes: Sequence[Size] | None = None,
    clip_latent_frames: int | None = None,
) -> Schedule:
    """An image pyramid over latent frame 0, then clip pyramids with constant t (InfinityStar).

    `clip_latent_frames` cuts the frames after the first into several pyramids (default: one); the
    last may be shorter. With one latent frame this is VAR's image schedule.
    """
    scales = [Scale(0, 1, 1, *_pair(size)) for size in sizes]
    step = clip_latent_frames or max(num_latent_frames - 1, 1)
    for start in range(1, num_latent_frames, step):
        end = min(start + step, num_latent_frames)
        scales += [
            Scale(start, end, end - start, *_pair(size))
            for size in (sizes if clip_sizes is None else clip_sizes)
        ]
    return Schedule(tuple(scales))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
