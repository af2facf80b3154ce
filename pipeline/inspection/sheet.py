"""The contact sheet: source frames beside what the codes give back, as one PNG.

    write_sheet("runs/demo/data", "sheet.png", num_clips=8, seed=0)

A row is a clip: its first, middle and last frame from the source file, the same frames decoded from
the codes with their PSNR, and what is said of it. A source that is gone is said so in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.inspection.reconstruction import BEST_PSNR, Comparison, compare
from tokenizer.settings import UserError

FRAME_HEIGHT, MAX_FRAME_WIDTH, GAP, MARGIN, TEXT_WIDTH = 128, 228, 4, 24, 250
PAPER, INK, SOFT, EMPTY = (250, 249, 246), (32, 36, 43), (106, 113, 128), (232, 229, 222)


def write_sheet(
    root: str | Path,
    target: str | Path,
    *,
    num_clips: int = 8,
    seed: int = 0,
    split: str | None = None,
    tokenizer: str | Path | None = None,
    token_set: str | None = None,
) -> list[Comparison]:
    """Writes the picture and returns what is on it; UserError when it cannot be made.

    `token_set` names the codes that are shown (default: the primary ones).
    """
    comparisons = compare(
        root,
        num_samples=num_clips,
        seed=seed,
        split=split,
        tokenizer=tokenizer,
        token_set=token_set,
    )
    picture = draw_sheet(
        comparisons, f"{Path(root).resolve().name}, {num_clips} clips, seed {seed}"
    )
    try:
        picture.save(target, "png", optimize=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{target}: cannot be written ({error}); name a .png file") from None
    return comparisons


def draw_sheet(comparisons: Sequence[Comparison], title: str) -> Image.Image:
    """The picture of some comparisons, one under the other."""
    width = max(_frame_size(each.decoded)[0] for each in comparisons)
    strip = 3 * width + 2 * GAP
    columns = [MARGIN, MARGIN + strip + MARGIN, MARGIN + 2 * (strip + MARGIN)]
    row_height = FRAME_HEIGHT + 30
    top = 84
    size = (columns[2] + TEXT_WIDTH + MARGIN, top + row_height * len(comparisons) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 18), title, INK, _font(20))
    for x, name in zip(columns, ("source", _summary(comparisons))):
        draw.text((x, 54), name, SOFT, _font(14))
    for index, each in enumerate(comparisons):
        y = top + index * row_height
        _draw_strips(sheet, draw, each, columns, y, strip)
        _draw_text(draw, each, columns[2], y)
    return sheet


def _draw_strips(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    each: Comparison,
    columns: Sequence[int],
    y: int,
    strip: int,
) -> None:
    frame_width, frame_height = _frame_size(each.decoded)
    last = len(each.decoded) - 1
    for place, frame in enumerate(sorted({0, last // 2, last})):
        shift = place * (frame_width + GAP)
        if each.original is not None:
            sheet.paste(_picture(each.original[frame]), (columns[0] + shift, y))
            near = _frame_psnr(each.decoded[frame], each.original[frame])
            draw.text((columns[1] + shift, y + frame_height + 3), near, SOFT, _font(12))
        sheet.paste(_picture(each.decoded[frame]), (columns[1] + shift, y))
    if each.original is None:
        box = (columns[0], y, columns[0] + strip, y + FRAME_HEIGHT)
        draw.rectangle(box, EMPTY)
        draw.text((columns[0] + 12, y + 12), f"source {each.reason}", SOFT, _font(14))


def _draw_text(draw: ImageDraw.ImageDraw, each: Comparison, x: int, y: int) -> None:
    row = each.metadata
    near = "no source" if each.psnr is None else f"{each.psnr:.1f} dB"
    place = f"{row.get('uri', '')} at {float(row.get('start_seconds') or 0):.2f} s"
    draw.text((x, y), near, INK, _font(18))
    lines = [*_wrapped(place, 36)[:2], *_wrapped(str(row.get("caption") or ""), 36)[:4]]
    for line, said in enumerate(lines):
        draw.text((x, y + 26 + 17 * line), said, SOFT, _font(13))


def _summary(comparisons: Sequence[Comparison]) -> str:
    found = [each.psnr for each in comparisons if each.psnr is not None]
    mean = f", PSNR {np.mean(found):.1f} dB on average" if found else ""
    return f"decoded from codes{mean}"


def _frame_psnr(decoded: np.ndarray, original: np.ndarray) -> str:
    error = float(np.mean((decoded.astype(np.float64) - original) ** 2))
    return f"{min(10 * np.log10(255**2 / error), BEST_PSNR):.1f} dB" if error else "equal"


def _frame_size(frames: np.ndarray) -> tuple[int, int]:
    """(width, height) at which frames [t, h, w, 3] are shown."""
    height, width = frames.shape[1:3]
    scale = min(FRAME_HEIGHT / height, MAX_FRAME_WIDTH / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _picture(frame: np.ndarray) -> Image.Image:
    size = _frame_size(frame[None])
    grows = size[1] >= frame.shape[0]
    return Image.fromarray(frame).resize(
        size, Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    )


def _wrapped(said: str, length: int) -> list[str]:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said)
    return [shown[start : start + length] for start in range(0, len(shown), length)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
