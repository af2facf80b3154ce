"""Orders as pictures: a tile for every frame of every scale, each cell coloured by its step.

    drawing = Drawing("nar", order, order.step_of_cell)
    save_orders([drawing], "nar.png")     # colour = step, numbers where they fit
    save_film(drawing, "nar.gif")         # the cells in the order of generation

All tiles show the same part of a picture, so the cells of a coarse scale are drawn larger. In a
film cells of the current step are white, and those to come dark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from training.order import Order
from training.pictures import FAINT, INK, PAPER, font_of, save_png, write_video

if TYPE_CHECKING:
    from PIL import Image

LATER = (58, 61, 77)
"""A cell that is not generated yet."""
_RAMP = ((108, 132, 228), (89, 194, 255), (149, 230, 203), (255, 180, 84), (240, 113, 120))
_MARGIN = 28
_GAP = 18
_HEAD = 44
_NAME = 20
_WIDTH = 1124
_WIDEST = 216
_MAX_FRAMES = 90
_HOLD_SECONDS = 1.5
_FPS = 10


@dataclass(frozen=True)
class Drawing:
    """An order, under a title, with the step of each cell (from 1)."""

    title: str
    order: Order
    steps: Int[np.ndarray, " cells"]

    def tiles(self) -> Iterator[tuple[tuple[str, ...], Int[np.ndarray, "h w"]]]:
        """The frames of all scales, with the words of a name where there are several."""
        schedule = self.order.schedule
        for number, (scale, table) in enumerate(zip(schedule.scales, schedule.split(self.steps))):
            for frame, steps in enumerate(table, start=scale.t0):
                of_scale = () if schedule.grid else ("scale", str(number))
                of_frame = ("frame", str(frame)) if schedule.num_latent_frames > 1 else ()
                yield of_scale + of_frame, steps


@dataclass(frozen=True)
class Moment:
    """A picture of a film: the steps (after, now] are being generated."""

    after: int
    now: int


def save_orders(drawings: Sequence[Drawing], path: str | Path) -> Path:
    """Writes one PNG of them all, side by side where they fit."""
    names = ", ".join(each.title for each in drawings)
    widest = _WIDEST if len(drawings) == 1 else _WIDEST * 2 // 3
    panels = [_panel(each, widest=widest) for each in drawings]
    return save_png(_page(panels).quantize(256), path, {"orders": names})


def save_film(drawing: Drawing, path: str | Path) -> Path:
    """Writes .gif or .mp4 of the generation, several steps a picture where there are very many."""
    num_steps = drawing.order.num_steps
    shown = np.unique(np.linspace(0, num_steps, _MAX_FRAMES).round().astype(int)).tolist()
    moments = [Moment(after, now) for after, now in zip([0, *shown], shown)]
    moments += [Moment(num_steps, num_steps)] * round(_HOLD_SECONDS * _FPS)
    frames = [np.asarray(_page([_panel(drawing, each)])) for each in moments]
    metadata = {
        "order": drawing.order.name,
        "schedule": json.dumps(drawing.order.schedule.to_list()),
    }
    return write_video(np.stack(frames), path, _FPS, metadata, enlarge=1)


def colors_of(steps: Float[np.ndarray, "*n"], num_steps: int) -> UInt8[np.ndarray, "*n 3"]:
    """The colour of each step, cold to warm."""
    share = (steps - 1) / max(num_steps - 1, 1)
    at = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(share, at, channel) for channel in np.transpose(_RAMP)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _page(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in lines, and below them the colours."""
    from PIL import Image, ImageDraw

    places: list[tuple[int, int]] = []
    left, top, line_height = 0, 0, 0
    for panel in panels:
        if left and left + panel.width > _WIDTH:
            left, top, line_height = 0, top + line_height + _MARGIN, 0
        places.append((_MARGIN + left, _MARGIN + top))
        left, line_height = left + panel.width + _MARGIN, max(line_height, panel.height)
    right = max(place[0] + panel.width for place, panel in zip(places, panels))
    bottom = 2 * _MARGIN + top + line_height
    page = Image.new("RGB", (right + _MARGIN, bottom + 14 + _MARGIN), PAPER)
    for place, panel in zip(places, panels):
        page.paste(panel, place)
    draw, font = ImageDraw.Draw(page), font_of(13)
    draw.text((_MARGIN, bottom + 7), "first step", fill=FAINT, font=font, anchor="lm")
    bar_left = _MARGIN + int(font.getlength("first step")) + 10
    bar = colors_of(np.linspace(1, 2, 120), 2)
    page.paste(Image.fromarray(np.repeat(bar[None], 14, axis=0)), (bar_left, bottom))
    draw.text((bar_left + 130, bottom + 7), "last", fill=FAINT, font=font, anchor="lm")
    return page


def _panel(drawing: Drawing, moment: Moment | None = None, widest: int = _WIDEST) -> Image.Image:
    """The tiles of one order under its title."""
    from PIL import Image, ImageDraw

    tiles, order = list(drawing.tiles()), drawing.order
    per_line = min(len(tiles), 6 if len(tiles) <= 12 else 10 if len(tiles) <= 60 else 16)
    rows, columns = order.schedule.scales[-1].shape[1:]
    wide = min((_WIDTH + _GAP) // per_line - _GAP, widest)
    high = min(max(1, round(wide * rows / columns)), 2 * wide)
    name_height = _NAME if any(name for name, _ in tiles) else 0
    bold, font, small = font_of(17), font_of(14), font_of(13)
    plural = "s" * (order.num_steps > 1)
    subtitle = f"{order.schedule.num_tokens:,} cells in {order.num_steps:,} step{plural}"
    if moment is not None:
        subtitle += f"; step {moment.now:,}: {sum(order.sizes[: moment.now]):,} cells"
    title_width = int(max(bold.getlength(drawing.title), font.getlength(subtitle)))
    width = max(per_line * (wide + _GAP) - _GAP, title_width, 290 if moment else 0)
    num_lines = -(-len(tiles) // per_line)
    panel = Image.new("RGB", (width, _HEAD + num_lines * (high + name_height + _GAP) - _GAP), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 14), drawing.title, fill=INK, font=bold, anchor="ls")
    draw.text((0, 34), subtitle, fill=FAINT, font=font, anchor="ls")
    for number, (name, steps) in enumerate(tiles):
        left = number % per_line * (wide + _GAP)
        top = _HEAD + number // per_line * (high + name_height + _GAP)
        fits = small.getlength(" ".join(name)) <= wide
        text = " ".join(name) if fits else ":".join(name[1::2])
        draw.text((left, top + 14), text, fill=FAINT, font=small, anchor="ls")
        panel.paste(_tile(steps, (high, wide), order.num_steps, moment), (left, top + name_height))
    return panel


def _tile(
    steps: Int[np.ndarray, "h w"], size: tuple[int, int], num_steps: int, moment: Moment | None
) -> Image.Image:
    """Cells with a line between them, numbered where they are large enough."""
    from PIL import Image, ImageDraw

    colors = colors_of(steps, num_steps)
    if moment is not None:
        colors[steps > moment.now] = LATER
        colors[(steps > moment.after) & (steps <= moment.now)] = INK
    rows, columns = (_edges(count, length) for count, length in zip(steps.shape, size))
    tile = Image.new("RGB", (size[1], size[0]), PAPER)
    draw = ImageDraw.Draw(tile)
    high, wide = size[0] / steps.shape[0], size[1] / steps.shape[1]
    line = 1 if min(high, wide) >= 5 else 0
    text_size = int(min(high * 0.6, wide / (0.35 + 0.6 * len(str(num_steps))), 20))
    font = font_of(text_size) if text_size >= 9 else None
    for i, j in np.ndindex(*steps.shape):
        left, top, right, bottom = columns[j], rows[i], columns[j + 1], rows[i + 1]
        draw.rectangle((left, top, right - 1 - line, bottom - 1 - line), tuple(colors[i, j]))
        if font is not None and (moment is None or steps[i, j] <= moment.now):
            middle = (left + right - line) / 2, (top + bottom - line) / 2
            draw.text(middle, str(steps[i, j]), fill=PAPER, font=font, anchor="mm")
    return tile


def _edges(count: int, length: int) -> list[int]:
    """Where `count` cells of about equal size begin and end on `length` pixels."""
    edges: list[float] = np.linspace(0, length, count + 1).tolist()
    return [round(edge) for edge in edges]
