"""Images as clips of one frame: jpg, png and webp, by Pillow, for every decoder.

The picture is turned as its EXIF orientation says; transparent pixels are black; 16-bit greys are
scaled to 8; of an animation the first frame counts. Its only pts is 0, in a clock of one second.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.decode.decoder import (
    GREY_HEIGHT,
    GREY_WIDTH,
    SCAN_HEIGHT,
    SCAN_WIDTH,
    ClipRequest,
    DecodeError,
    DecodeLimits,
    Probe,
    ScanFrame,
)
from pipeline.decode.resize import resize_rgb, to_luma

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # EXIF: anticlockwise degrees


def is_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (12 bytes or more) is a jpg, png or webp."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )


class ImageDecoder:
    """Decodes still images; `limits.max_pixels` is checked before any pixel is decoded."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits

    def probe(self, path: str | Path) -> Probe:
        with self._opened(path) as image:
            codec, mode = str(image.format).lower(), image.mode
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            image.load()
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return Probe(
            kind="image",
            width=width,
            height=height,
            fps=None,
            duration_seconds=None,
            num_frames=1,
            time_base=(1, 1),
            codec=codec,
            container=codec,
            pixel_format=mode,
            rotation=_ROTATIONS.get(orientation, 0),
        )

    def scan(self, path: str | Path) -> Iterator[ScanFrame]:
        pixels = self._displayed(path)
        crop = (0, 0, pixels.shape[1], pixels.shape[0])
        small = resize_rgb(pixels, crop, SCAN_HEIGHT, SCAN_WIDTH)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
        yield ScanFrame(0, small, to_luma(VideoReformatter(), frame, GREY_HEIGHT, GREY_WIDTH))

    def clips(self, path: str | Path, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        if not requests:
            return
        pixels = self._displayed(path)
        for request in requests:
            frame = resize_rgb(pixels, request.crop, request.height, request.width)
            yield np.repeat(frame[None], request.num_frames, axis=0)

    def _displayed(self, path: str | Path) -> np.ndarray:
        """uint8 (h, w, 3), turned upright."""
        from PIL import ImageOps

        with self._opened(path) as image:
            return np.asarray(ImageOps.exif_transpose(_rgb(image)))

    @contextmanager
    def _opened(self, path: str | Path) -> Iterator[Image.Image]:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened = Image.open(path, formats=("JPEG", "PNG", "WEBP"))
        except Image.DecompressionBombError:
            raise DecodeError("too_large", f"{path}: far over max_pixels") from None
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
            raise DecodeError("open", f"{path}: {error}") from None
        with opened as image:
            width, height = image.size
            if width * height > self._limits.max_pixels:
                raise DecodeError(
                    "too_large",
                    f"{path}: {width}x{height} is over max_pixels ({self._limits.max_pixels})",
                )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield image
            except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
                raise DecodeError("corrupt", f"{path}: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) // 257
        converted = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        converted = Image.new("RGB", rgba.size)
        converted.paste(rgba, mask=rgba.getchannel("A"))
    else:
        converted = image.convert("RGB")
    converted.info = {}
    converted.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return converted
