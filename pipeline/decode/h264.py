"""H.264 bitstreams, as far as it matters where a decoder may begin."""

from __future__ import annotations

from collections.abc import Iterator

_IDR = 5  # ITU-T H.264, table 7-1: coded slice of a picture that needs no other


def has_idr(packet: bytes, extradata: bytes) -> bool:
    """Whether a packet holds a slice of an IDR picture.

    `extradata` says how units are told apart: by lengths (avcC, ISO/IEC 14496-15), or by start
    codes (Annex B).
    """
    is_avcc = extradata[:1] == b"\x01" and len(extradata) > 4
    units = _by_length(packet, (extradata[4] & 3) + 1) if is_avcc else _by_start_code(packet)
    return any(header & 31 == _IDR for header in units)


def _by_length(packet: bytes, num_bytes: int) -> Iterator[int]:
    place = 0
    while place + num_bytes < len(packet):
        yield packet[place + num_bytes]
        place += num_bytes + int.from_bytes(packet[place : place + num_bytes], "big")


def _by_start_code(packet: bytes) -> Iterator[int]:
    place = packet.find(b"\0\0\1")
    while 0 <= place < len(packet) - 3:
        yield packet[place + 3]
        place = packet.find(b"\0\0\1", place + 3)
