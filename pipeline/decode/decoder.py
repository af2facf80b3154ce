"""What decoding is about: the records that go in and out, the limits, the settings.

Times are integers in the file's own clock, its time base: `pts * time_base[0] / time_base[1]` are
seconds. Sizes and crops are in displayed pixels: after rotation, and with square pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tokenizer.settings import setting

Media: TypeAlias = str | Path | bytes
"""What is decoded: a file by its path, or a whole file in memory."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a file may cost; beyond a limit it ends as `too_large` or `timeout`."""

    max_pixels: int = setting(
        8192 * 4608, "pixels of a frame; larger ones are refused before they are decoded"
    )
    max_seconds: float = setting(4 * 3600.0, "seconds from the first frame to the last")
    max_frames: int = setting(
        200_000,
        "frames of a file; annotating takes 7 to 12 kB of memory for each: for more, raise "
        "annotate.memory_bytes",
    )
    max_file_bytes: int = setting(64 << 30, "bytes of a file")
    timeout_seconds: float = setting(900.0, "seconds that one pass over a file may take")

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} ({getattr(self, field.name)}) must be above 0")


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """What becomes of damage, and of pictures that are not plain progressive ones."""

    damage: Literal["raise", "prefix", "skip"] = setting(
        "prefix",
        "of a damaged file keep nothing (raise), what comes before the damage (prefix), or that "
        "and what follows from the next key frame on (skip)",
    )
    strict: bool = setting(
        True,
        "damage that FFmpeg would conceal counts too, so that every frame is as it was encoded; "
        "false: concealed frames are taken, and after damage all that comes",
    )
    interlaced: Literal["field", "weave"] = setting(
        "field", "interlaced frames: show the first field, without combing, or both as they lie"
    )
    hdr: Literal["tone_map", "plain"] = setting(
        "tone_map", "HDR (PQ, HLG): mapped to standard range and BT.709 colours, or left pale"
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a file says it is, with the size and nature of its first decoded frame.

    `width` x `height` is the displayed size: square pixels, turned upright. `stored_width` x
    `stored_height` is that of the frames as they are coded, whose pixels are `pixel_aspect` times
    as wide as high. `fps`, `duration_seconds` and `num_frames` are the header's claims: None when
    it makes none, and often wrong. `rotation` is how far the stored picture is turned anticlockwise
    to be displayed: 0, 90, 180 or 270. `alpha` says whether there is transparency: `blended` with
    black, or `dropped` since the decoder does not see it.
    """

    kind: Literal["video", "image"]
    width: int
    height: int
    fps: float | None
    duration_seconds: float | None
    num_frames: int | None
    time_base: tuple[int, int]
    codec: str
    container: str
    pixel_format: str
    rotation: int
    stored_width: int
    stored_height: int
    pixel_aspect: float = 1.0
    bit_depth: int = 8
    interlaced: bool = False
    transfer: Literal["sdr", "pq", "hlg"] = "sdr"
    alpha: Literal["none", "blended", "dropped"] = "none"


Crop: TypeAlias = tuple[int, int, int, int]
"""(x, y, width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a frame is wanted: `crop` in displayed pixels (None: all), resized to the size.

    `rough` takes swscale's default chroma, good enough for what nobody looks at; `grey` gives luma
    alone, uint8 (height, width).
    """

    height: int
    width: int
    crop: Crop | None = None
    rough: bool = False
    grey: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"height ({self.height}) and width ({self.width}) must be at least 1")
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(
                f"crop ({self.crop}) must be (x, y, width, height), the first two not below 0, the "
                "others at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """A clip to decode: `num_frames` at `fps` from `start_pts`, all before `end_pts`.

    `crop` is (x, y, width, height) in displayed pixels; it is resized to `height` x `width`.
    """

    start_pts: int
    end_pts: int
    fps: float
    num_frames: int
    crop: Crop
    height: int
    width: int

    @property
    def view(self) -> View:
        return View(height=self.height, width=self.width, crop=self.crop)


@dataclass(frozen=True)
class Frames:
    """Frames in the order asked for: uint8 (n, height, width, 3) RGB, and int64 (n,) pts.

    `seconds` is float64 (n,): when each begins, counted from the file's first frame.
    """

    pts: np.ndarray
    seconds: np.ndarray
    pixels: np.ndarray
