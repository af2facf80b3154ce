"""Schedules: how the codes of one clip are laid out, as data, without torch.

A *scale* is one grid of codes: it covers latent frames [t0, t1) with a grid of t x h x w codes. A
*pyramid* is a run of scales over the same latent frames, coarse to fine; the quantizer sums its
scales. A *schedule* is the pyramids of a clip in time order. An image is one pyramid over latent
frame 0; a video is that pyramid and then clip pyramids over the frames that follow; a plain grid is
one pyramid of one scale. Codes are stored flat: scales in schedule order, then t, h, w in C order.

    schedule = image_and_clip(num_latent_frames=3, sizes=(1, 2, 4))
    schedule.num_tokens          # 21 + 2 * 21 = 63
    preset_schedule("infinitystar-480p", num_latent_frames=21, ratio=9 / 16).num_tokens  # 81,879

`PRESETS` holds the scales of published tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import sqrt
from typing import TypeVar

import numpy as np

from tokenizer.settings import UserError

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
            raise ValueError(
                f"scale [{self.t0}, {self.t1}) has {self.t} code frames over "
                f"{self.t1 - self.t0} latent frames: t may be at most that"
            )

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
            for coarse, fine in pairwise(pyramid):
                if any(a > b for a, b in zip(coarse.shape, fine.shape)):
                    raise ValueError(
                        f"scale {_text(fine.shape)} follows the larger {_text(coarse.shape)}: "
                        "the scales of a pyramid must grow from coarse to fine"
                    )
            if pyramid[-1].shape[1:] != self.scales[-1].shape[1:]:
                raise ValueError(
                    f"a pyramid ends at {_text(pyramid[-1].shape[1:])} and the last one at "
                    f"{_text(self.scales[-1].shape[1:])}: all must end at the latent grid"
                )

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

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the scales at each place of their pyramids, coarse to fine."""
        places = [place for pyramid in self.pyramids for place in range(len(pyramid))]
        return tuple(
            tuple(index for index, place in enumerate(places) if place == level)
            for level in range(max(places) + 1)
        )

    @property
    def num_latent_frames(self) -> int:
        return self.scales[-1].t1

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """The t, h, w of codes that have one scale everywhere; None for a pyramid."""
        if any(scale.t != scale.t1 - scale.t0 for scale in self.scales):
            return None
        return None if len(self.levels) > 1 else (self.num_latent_frames, *self.scales[0].shape[1:])

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

    def check_grid(self, t: int, h: int, w: int) -> None:
        """UserError unless latents of t x h x w are what this schedule is for."""
        if self.num_latent_frames != t:
            raise UserError(
                f"the schedule is for {self.num_latent_frames} latent frames, there are {t}; "
                "take the schedule of clips of this length"
            )
        finest = self.scales[-1]
        if (finest.h, finest.w) != (h, w):
            size = "larger" if finest.h > h or finest.w > w else "smaller"
            raise UserError(
                f"the schedule's finest scale ({finest.h} x {finest.w}) is {size} than the latent "
                f"grid ({h} x {w}); it must be that grid"
            )

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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The scales of a published tokenizer."""

    sides: tuple[int, ...]
    """Of the square image, coarse to fine."""
    tables: Mapping[float, tuple[tuple[int, int], ...]] | None = None
    """(h, w) per ratio h / w >= 1 where it is not a rule; its transpose is for w / h."""
    clip_latent_frames: int = 1
    """Latent frames per clip pyramid behind frame 0."""


def preset_sides(name: str, ratio: float = 1.0) -> tuple[tuple[int, int], ...]:
    """(h, w) of each scale of a preset at the aspect ratio height / width.

    Infinity has tables, for a few ratios; all others go by InfinityStar's rule: the square's area,
    h = round(side * sqrt(ratio)), w = round(side / sqrt(ratio)).
    """
    if name not in PRESETS:
        raise UserError(f"unknown schedule {name!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if not 0.1 <= ratio <= 10:
        raise UserError(f"ratio ({ratio:g}) is height / width and must lie in [0.1, 10]")
    if preset.tables is None:
        return tuple(_of_area(side, ratio) for side in preset.sides)
    wanted = max(ratio, 1 / ratio)
    nearest = min(preset.tables, key=lambda each: abs(each - wanted))
    if abs(nearest - wanted) > 0.01:
        known = ", ".join(f"{each:g}" for each in preset.tables)
        raise UserError(f"ratio ({ratio:g}) has no scales in {name}; 1 / or {known} have")
    table = preset.tables[nearest][: len(preset.sides)]
    return table if ratio >= 1 else tuple((w, h) for h, w in table)


def preset_schedule(name: str, num_latent_frames: int = 1, ratio: float = 1.0) -> Schedule:
    """A published schedule: an image pyramid, and clip pyramids for the latent frames after it."""
    sides = preset_sides(name, ratio)
    return image_and_clip(
        num_latent_frames, sides, clip_latent_frames=PRESETS[name].clip_latent_frames
    )


def _of_area(side: int, ratio: float) -> tuple[int, int]:
    return max(1, round(side * sqrt(ratio))), max(1, round(side / sqrt(ratio)))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


_INFINITY = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
_INFINITY_TABLES = {
    1.0: tuple((side, side) for side in _INFINITY),
    1.25: ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16),
           (25, 20), (30, 24), (35, 28), (45, 36), (55, 44), (70, 56)),
    1.333: ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15),
            (24, 18), (28, 21), (36, 27), (48, 36), (60, 45), (72, 54)),
    1.5: ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14),
          (27, 18), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52)),
    1.75: ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12),
           (28, 16), (35, 20), (42, 24), (56, 32), (70, 40), (84, 48)),
    2.0: ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11),
          (30, 15), (38, 19), (46, 23), (60, 30), (74, 37), (90, 45)),
    2.5: ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10),
          (30, 12), (40, 16), (50, 20), (65, 26), (80, 32), (100, 40)),
    3.0: ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9),
          (36, 12), (45, 15), (54, 18), (72, 24), (90, 30), (111, 37)),
}  # fmt: skip
_STAR = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 40, 60)
_STAR_FRAMES = 20

PRESETS: dict[str, Preset] = {
    "var-256": Preset(sides=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "var-512": Preset(sides=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    "var-1024": Preset(sides=(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)),
    "infinity-256": Preset(sides=_INFINITY[:7], tables=_INFINITY_TABLES),
    "infinity-512": Preset(sides=_INFINITY[:10], tables=_INFINITY_TABLES),
    "infinity-1024": Preset(sides=_INFINITY, tables=_INFINITY_TABLES),
    "infinitystar-256": Preset(sides=_STAR[:11], clip_latent_frames=_STAR_FRAMES),
    "infinitystar-512": Preset(sides=_STAR[:13], clip_latent_frames=_STAR_FRAMES),
    "infinitystar-480p": Preset(sides=_STAR[:14], clip_latent_frames=_STAR_FRAMES),
    "infinitystar-720p": Preset(sides=_STAR, clip_latent_frames=_STAR_FRAMES),
}
"""VAR (arXiv 2404.02905), Infinity (2412.04431), InfinityStar (2511.04675), at 16 pixels a cell."""
