"""The picture of reconstructions: source and result one above the other, and how a frame grows.

    sheet = draw_reconstructions(shown, title="What the codes give back")

A row is a clip. On the left frames of the source above the same frames of the reconstruction; on
the right one frame after each scale, coarse to fine. Rows go from the worst clip to the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from tokenizer.metrics import BEST_PSNR
from training.pictures import FAINT, INK, PAPER, font_of

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SHOWN_HEIGHT = 128
"""Frames are shown about this high: small ones enlarged by a whole factor."""
FRAMES = 4
_GROWTH_ROWS = 2
_LABEL_LENGTH = 20
_MARGIN, _GAP, _PART_GAP, _ROW_GAP, _LABEL_WIDTH, _CAPTION = 32, 3, 26, 30, 168, 20


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the picture shows of a clip: some frames, and the last one after each scale."""

    source: UInt8[np.ndarray, "n h w 3"]
    decoded: UInt8[np.ndarray, "n h w 3"]
    growth: list[UInt8[np.ndarray, "h w 3"]]
    psnr: float
    place: int
    rank: str = ""
    said: str = ""

    @classmethod
    def of(
        cls,
        frames: UInt8[np.ndarray, "t h w 3"],
        after: Sequence[UInt8[np.ndarray, "t h w 3"]],
        psnr: float,
        place: int,
    ) -> Shown:
        """Of a clip and what it is after each scale; `place` is its number among the samples."""
        count = min(FRAMES, len(frames))
        chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
        return cls(
            source=frames[chosen].copy(),
            decoded=after[-1][chosen].copy(),
            growth=[each[-1].copy() for each in after],
            psnr=psnr,
            place=place,
        )

    def described(self, metadata: Mapping[str, Any], rank: str) -> Shown:
        """With its rank, and what the shard says of it: its source and where it begins."""
        uri = str(metadata.get("uri") or metadata.get("key") or "")
        start = metadata.get("start_seconds")
        place = f"\nat {float(start):.1f} s" if isinstance(start, (int, float)) else ""
        return replace(self, rank=rank, said=uri.rsplit("/", 1)[-1] + place)


def draw_reconstructions(shown: Sequence[Shown], title: str, subtitle: str = "") -> Image.Image:
    """The picture, as RGB; ValueError without clips."""
    from PIL import Image, ImageDraw

    if not shown:
        raise ValueError("a picture of reconstructions needs at least one clip")
    rows = [_row(each) for each in shown]
    strip = max(row.strips.width for row in rows)
    lefts = (_MARGIN, _MARGIN + _LABEL_WIDTH, _MARGIN + _LABEL_WIDTH + strip + _PART_GAP)
    head = _MARGIN + 96
    width = lefts[2] + max(row.growth.width for row in rows) + _MARGIN
    height = head + sum(row.height + _ROW_GAP for row in rows) - _ROW_GAP + _MARGIN
    sheet = Image.new("RGB", (max(width, 900), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), title, fill=INK, font=font_of(28))
    draw.text((_MARGIN, _MARGIN + 34), subtitle, fill=FAINT, font=font_of(15))
    heads = ("", "source above, reconstruction below", "the same frame after each scale")
    for left, name in zip(lefts, heads):
        draw.text((left, head - 26), name, fill=FAINT, font=font_of(14))
    top = head
    for each, row in zip(shown, rows):
        _draw_label(draw, each, top)
        sheet.paste(row.strips, (lefts[1], top))
        sheet.paste(row.growth, (lefts[2], top))
        top += row.height + _ROW_GAP
    return sheet


@dataclass(frozen=True)
class _Row:
    strips: Image.Image
    growth: Image.Image

    @property
    def height(self) -> int:
        return max(self.strips.height, self.growth.height)


def _row(shown: Shown) -> _Row:
    from PIL import Image

    width, height = _size(shown.source.shape[1:3], SHOWN_HEIGHT)
    count = len(shown.source)
    strips = Image.new("RGB", (count * (width + _GAP) - _GAP, 2 * height + _GAP), PAPER)
    for line, frames in enumerate((shown.source, shown.decoded)):
        for column, frame in enumerate(frames):
            place = column * (width + _GAP), line * (height + _GAP)
            strips.paste(_picture(frame, (width, height)), place)
    return _Row(strips, _growth(shown, strips.height))


def _growth(shown: Shown, height: int) -> Image.Image:
    """The last frame after each scale with its PSNR, in as many rows as keep it legible."""
    from PIL import Image, ImageDraw

    rows = 1 if len(shown.growth) <= 4 else _GROWTH_ROWS
    columns = -(-len(shown.growth) // rows)
    cell = (height - (rows - 1) * _CAPTION) // rows
    width, shown_height = _size(shown.source.shape[1:3], cell)
    step = width + 4 * _GAP, shown_height + _CAPTION
    picture = Image.new("RGB", (columns * step[0], rows * step[1]), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, frame in enumerate(shown.growth):
        left, top = index % columns * step[0], index // columns * step[1]
        picture.paste(_picture(frame, (width, shown_height)), (left, top))
        near = _frame_psnr(frame, shown.source[-1])
        said = f"{index + 1}   {near:.1f} dB"
        draw.text((left, top + shown_height + 3), said, fill=FAINT, font=font_of(13))
    return picture


def _draw_label(draw: ImageDraw.ImageDraw, shown: Shown, top: int) -> None:
    draw.text((_MARGIN, top), f"{shown.psnr:.1f} dB", fill=INK, font=font_of(24))
    draw.text((_MARGIN, top + 34), shown.rank, fill=FAINT, font=font_of(15))
    lines = [
        line[start : start + _LABEL_LENGTH]
        for line in shown.said.split("\n")
        for start in range(0, min(len(line), 3 * _LABEL_LENGTH), _LABEL_LENGTH)
    ]
    for number, line in enumerate(lines):
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        draw.text((_MARGIN, top + 60 + 17 * number), text, fill=FAINT, font=font_of(13))


def _size(shape: Sequence[int], height: int) -> tuple[int, int]:
    """(width, height) at which frames of (height, width) are shown, about `height` high.

    They are enlarged by a whole factor unless that would leave a quarter of the room empty.
    """
    whole = height // shape[0]
    scale = whole if whole * shape[0] > 0.75 * height else height / shape[0]
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _picture(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    whole = size[1] % frame.shape[0] == 0
    resample = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(frame)).resize(size, resample)


def _frame_psnr(frame: np.ndarray, reference: np.ndarray) -> float:
    error = float(np.mean((frame.astype(np.float64) - reference) ** 2))
    return min(10 * float(np.log10(255**2 / error)), BEST_PSNR) if error else BEST_PSNR
