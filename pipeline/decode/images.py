"""Images as clips of one frame: jpg, png and webp, by Pillow, for every decoder.

The picture is turned as its EXIF orientation says; transparent pixels are black; 16-bit greys are
scaled to 8; of an animation the first frame counts. Its only pts is 0, in a clock of one second.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pipeline.decode.decoder import DecodeLimits, Media, Probe, View
from pipeline.decode.errors import CannotOpen, Corrupt, DecodeError, TooLarge
from pipeline.decode.picture import resize_rgb
from pipeline.decode.reader import PlayedFrame, name_of
from pipeline.decode.sampling import Shown

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # EXIF: anticlockwise degrees


class ImageReader:
    """One still image, open: a `Reader` of a single frame at pts 0.

    `limits.max_pixels` is checked before any pixel is decoded.
    """

    time_base = (1, 1)
    step_pts = 1
    damage: DecodeError | None = None

    def __init__(self, media: Media, limits: DecodeLimits) -> None:
        self._media = media
        self._name = name_of(media)
        self._limits = limits

    def close(self) -> None:
        """Nothing is held open between its answers."""

    def probe(self) -> Probe:
        with self._opened() as image:
            codec, mode = str(image.format).lower(), image.mode
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = stored = image.size
            transparent = _is_transparent(image)
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
            time_base=self.time_base,
            codec=codec,
            container=codec,
            pixel_format=mode,
            rotation=_ROTATIONS.get(orientation, 0),
            stored_width=stored[0],
            stored_height=stored[1],
            bit_depth=16 if mode.startswith("I") else 8,
            alpha="blended" if transparent else "none",
        )

    def start_pts(self) -> int:
        return 0

    def frames(self) -> Iterator[PlayedFrame[np.ndarray]]:
        yield PlayedFrame(0, self._displayed(), False)

    def key_frames(self) -> Iterator[PlayedFrame[np.ndarray]]:
        yield from self.frames()

    def show(self, wanted: Callable[[], int | None]) -> Iterator[Shown[np.ndarray]]:
        if wanted() is not None:
            yield Shown(self._displayed(), 0, None)

    def picture(self, frame: np.ndarray, view: View) -> np.ndarray:
        return resize_rgb(frame, view)

    def _displayed(self) -> np.ndarray:
        """uint8 (h, w, 3), turned upright."""
        from PIL import ImageOps

        with self._opened() as image:
            return np.asarray(ImageOps.exif_transpose(_rgb(image)))

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        from PIL import Image

        file = io.BytesIO(self._media) if isinstance(self._media, bytes) else self._media
        try:
            self._check_size(*_webp_size(self._head()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened = Image.open(file, formats=("JPEG", "PNG", "WEBP"))
        except Image.DecompressionBombError:
            raise TooLarge(f"{self._name}: far over max_pixels") from None
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
            raise CannotOpen(f"{self._name}: {error}") from None
        with opened as image:
            self._check_size(*image.size)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield image
            except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
                raise Corrupt(f"{self._name}: {error}") from None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise TooLarge(
                f"{self._name}: {width}x{height} is over max_pixels ({self._limits.max_pixels})",
            )

    def _head(self) -> bytes:
        if isinstance(self._media, bytes):
            return self._media[:30]
        with open(self._media, "rb") as file:
            return file.read(30)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height that the 30 bytes which begin a webp claim; (0, 0) of anything else.

    Pillow takes 8 bytes a pixel when it opens one. RFC 9649, sections 2.5 to 2.7.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return 0, 0
    if head[12:16] == b"VP8X":
        return (
            1 + int.from_bytes(head[24:27], "little"),
            1 + int.from_bytes(head[27:30], "little"),
        )
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<2H", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) // 257
        converted = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    elif _is_transparent(image):
        rgba = image.convert("RGBA")
        converted = Image.new("RGB", rgba.size)
        converted.paste(rgba, mask=rgba.getchannel("A"))
    else:
        converted = image.convert("RGB")
    converted.info = {}
    converted.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return converted


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
