"""Stills: which files are images, told by their content."""

from __future__ import annotations

from typing import IO

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _APP2 = 0xDA, 0xE2  # ITU-T T.81, table B.1
_MAX_BYTES = 64 << 20  # of a JPEG whose end is looked for


def is_still(file: IO[bytes]) -> bool:
    """Whether a file, read from its start, is a jpg, png or webp.

    JPEGs one behind the other are a film (raw MJPEG), but for those of one photo (CIPA DC-007: an
    APP2 segment `MPF` in the first).
    """
    head = file.read(16)
    if head.startswith(_SOI + b"\xff"):
        return not _is_film(head + file.read(_MAX_BYTES))
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or head.startswith(b"\x89PNG\r\n\x1a\n")


def _is_film(data: bytes) -> bool:
    place = len(_SOI)
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _APP2 and data[place + 4 : place + 8] == b"MPF\0":
            return False
        place += 2 + length
        if marker == _SOS:
            break
    end = data.find(_EOI, place)
    return end >= 0 and data[end + 2 : end + 5] == _SOI + b"\xff"
