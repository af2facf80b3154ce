"""Pictures of clips: playable files and contact sheets, each of which says what made it.

    write_video(frames, "red_3.mp4", fps=8, metadata={"generated": "true", "seed": "0"})
    sheet = contact_sheet([("a red 3 moving left", clips)], title="Generated clips")
    save_png(sheet, "samples.png", {"run": "runs/demo/generator"})

Metadata is a JSON object in the comment of an mp4 or GIF, and text chunks in a PNG; `read_metadata`
gives it back. An mp4 needs PyAV; where it is missing the same clip becomes a GIF.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SHOWN_SIZE = 256
"""Small clips are enlarged by a whole factor to about this many pixels, so that players show them
sharp."""

PAPER = (38, 40, 52)
INK = (232, 234, 242)
FAINT = (150, 155, 172)
_MARGIN = 28
_FRAME_GAP = 2
_CLIP_GAP = 14
_ROW_GAP = 10
_LABEL_GAP = 18


def write_video(
    frames: np.ndarray,
    path: str | Path,
    fps: float,
    metadata: Mapping[str, str],
    enlarge: int | None = None,
) -> Path:
    """Writes uint8 (t, h, w, 3) as .mp4 or .gif and returns the path written.

    `enlarge` repeats each pixel (default: until the shorter side reaches 256). Without PyAV an
    `.mp4` path becomes `.gif`.
    """
    path = Path(path)
    if path.suffix == ".mp4" and importlib.util.find_spec("av") is None:
        path = path.with_suffix(".gif")
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{path}: a clip is written as .mp4 or .gif")
    factor = enlarge or max(1, SHOWN_SIZE // min(frames.shape[1:3]))
    shown = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    partial = path.with_name(f".{path.name}.partial")
    write = _write_mp4 if path.suffix == ".mp4" else _write_gif
    write(shown, partial, fps, json.dumps(dict(metadata)))
    os.replace(partial, path)
    return path


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    title: str = "",
    subtitle: str = "",
    columns: Sequence[str] = (),
    frames_per_clip: int = 5,
    frame_size: int = 64,
) -> Image.Image:
    """Titled rows of clips, each clip a strip of frames in time order, as an RGB picture.

    Clips are uint8 (t, h, w, 3) of any size and length; longer ones than `frames_per_clip` show
    frames evenly apart, the first and last among them. `columns` names the clips of every row.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    strips = [[_strip(clip, frames_per_clip, frame_size) for clip in clips] for _, clips in rows]
    column_widths = [
        max(cells[column].width for cells in strips if column < len(cells))
        for column in range(max(len(cells) for cells in strips))
    ]
    text_size = max(13, frame_size // 5)
    font, bold, small = font_of(text_size), font_of(text_size * 2), font_of(text_size - 1)
    label_width = int(max(font.getlength(name) for name, _ in rows))
    label_width += _LABEL_GAP if label_width else 0
    lefts = [_MARGIN + label_width]
    for width in column_widths:
        lefts.append(lefts[-1] + width + _CLIP_GAP)
    head = _MARGIN + (text_size * 2 + 14 if title else 0) + (text_size + 14 if subtitle else 0)
    head += text_size + 12 if columns else 0
    heights = [max((cell.height for cell in cells), default=frame_size) for cells in strips]
    body_right = lefts[-1] - _CLIP_GAP
    width = max(body_right, _MARGIN + int(max(bold.getlength(title), small.getlength(subtitle))))
    height = head + sum(heights) + _ROW_GAP * (len(rows) - 1) + _MARGIN
    sheet = Image.new("RGB", (width + _MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    if title:
        draw.text((_MARGIN, top), title, fill=INK, font=bold, anchor="lt")
        top += text_size * 2 + 14
    if subtitle:
        draw.text((_MARGIN, top), subtitle, fill=FAINT, font=small, anchor="lt")
        top += text_size + 14
    for left, name in zip(lefts, columns):
        draw.text((left, top), name, fill=FAINT, font=small, anchor="lt")
    top = head
    for (name, _), cells, row_height in zip(rows, strips, heights):
        middle = (lefts[0] - _LABEL_GAP, top + row_height // 2)
        draw.text(middle, name, fill=INK, font=font, anchor="rm")
        for left, cell in zip(lefts, cells):
            sheet.paste(cell, (left, top))
        top += row_height + _ROW_GAP
    return sheet


def save_png(image: Image.Image, path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Writes a PNG whose text chunks are `metadata`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, format="PNG", pnginfo=info, optimize=True)
    os.replace(partial, path)
    return path


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `write_video` or `save_png` was given; empty for a file of somebody else."""
    path = Path(path)
    if path.suffix == ".mp4":
        with importlib.import_module("av").open(str(path)) as container:
            comment = container.metadata.get("comment", "{}")
    else:
        from PIL import Image

        with Image.open(path) as image:
            if path.suffix == ".png":
                texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
                return {str(key): value for key, value in texts.items()}
            comment = image.info.get("comment", b"{}").decode()
    try:
        found = json.loads(comment)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_mp4(frames: np.ndarray, path: Path, fps: float, comment: str) -> None:
    av = importlib.import_module("av")
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options={"crf": "14", "threads": "1"},
        )
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        for pixels in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _write_gif(frames: np.ndarray, path: Path, fps: float, comment: str) -> None:
    from PIL import Image

    images = [Image.fromarray(pixels) for pixels in frames]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        comment=comment.encode(),
    )


def _strip(clip: np.ndarray, frames_per_clip: int, frame_size: int) -> Image.Image:
    from PIL import Image

    count = min(len(clip), frames_per_clip)
    chosen = clip[np.linspace(0, len(clip) - 1, count).round().astype(int)]
    scale = frame_size / clip.shape[1]
    width = max(1, round(clip.shape[2] * scale))
    resample = Image.Resampling.NEAREST if scale == int(scale) else Image.Resampling.LANCZOS
    strip = Image.new("RGB", (count * (width + _FRAME_GAP) - _FRAME_GAP, frame_size), PAPER)
    for index, pixels in enumerate(chosen):
        frame = Image.fromarray(pixels).resize((width, frame_size), resample)
        strip.paste(frame, (index * (width + _FRAME_GAP), 0))
    return strip


def font_of(size: int) -> Any:
    """The font of all pictures, that of Pillow, `size` pixels high."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
