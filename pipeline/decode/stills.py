"""Stills: which files are images, told by their content."""

from __future__ import annotations

from typing import IO, NamedTuple

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _APP2 = 0xDA, 0xE2  # ITU-T T.81, table B.1
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MAX_BYTES = 64 << 20  # of a JPEG whose end is looked for


def is_still(file: IO[bytes]) -> bool:
    """Whether a file, read from its start, is a jpg, png or webp.

    JPEGs of one size, one behind the other, are a film (raw MJPEG); but for those of one photo
    (CIPA DC-007: an APP2 segment `MPF` in the first). A smaller one behind a photo is its preview.
    """
    head = file.read(16)
    if head.startswith(_SOI + b"\xff"):
        return not _is_film(head + file.read(_MAX_BYTES))
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or head.startswith(b"\x89PNG\r\n\x1a\n")


class _Header(NamedTuple):
    """What comes before the picture itself: `size` as its bytes, and where the picture begins."""

    size: bytes
    is_of_several: bool
    end: int


def _is_film(data: bytes) -> bool:
    first = _header(data, 0)
    if first is None or first.is_of_several:
        return False
    end = data.find(_EOI, first.end)
    second = _header(data, end + 2) if end >= 0 else None
    return second is not None and second.size == first.size


def _header(data: bytes, place: int) -> _Header | None:
    """The header of the JPEG that begins at `place`; None where none does."""
    if data[place : place + 2] != _SOI:
        return None
    size, is_of_several = b"", False
    place += 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _SOF:
            size = data[place + 5 : place + 9]
        is_of_several |= marker == _APP2 and data[place + 4 : place + 8] == b"MPF\0"
        place = end
        if marker == _SOS:
            return _Header(size, is_of_several, place)
    return None
