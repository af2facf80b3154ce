"""Writes one shard: a USTAR tar that stock WebDataset reads, and its sidecar.

    with open("0001.tar", "wb") as file:
        writer = ShardWriter(file, ("codes.npy",))
        writer.write("0001", {"codes.npy": codes}, {"caption": "a cat"})
        sidecar = writer.close()

Same samples, same bytes: keys in the order given, members adjacent, mtime, uid and gid zero, `.npy`
version 1 headers, JSON with sorted keys. The tar ends with two zero blocks.

A tar header is put together from constants, the name, the size and the checksum, whose sum is known
but for these; a sample is one write.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Protocol

import numpy as np

from pipeline.shards.format import canonical_json
from pipeline.shards.npy import array_header
from pipeline.shards.sidecar import (
    PLACE,
    SAMPLE,
    clip_bytes,
    code_key_bytes,
    key_bytes,
    pack_sidecar,
)

BLOCK_BYTES = 512
MAX_MEMBER_BYTES = (1 << 32) - 1
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
_NAME_BYTES = 100
_PLACE = Struct("<QII")
_PADDING = [bytes(-length % BLOCK_BYTES) for length in range(BLOCK_BYTES)]
_NAME_END = [bytes(_NAME_BYTES - length) for length in range(_NAME_BYTES + 1)]
_MODE_AND_OWNER = b"0000444\0" + b"0000000\0" * 2
_TIME = b"\0" + b"00000000000\0"  # ends the size before it
_HEADER_END = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(247)
_CONSTANT_SUM = sum(_MODE_AND_OWNER + _TIME + _HEADER_END[2:]) + 8 * ord(" ")


class ByteSink(Protocol):
    """Where a shard goes: a binary file, or anything else that takes bytes in order."""

    def write(self, data: bytes, /) -> int: ...


class ShardWriter:
    """Appends samples to `stream`; `close` returns the sidecar's bytes.

    `members` names the arrays of every sample in tar order, for example ("codes.npy",); JSON
    metadata follows as the last member.
    """

    def __init__(self, stream: ByteSink, members: tuple[str, ...]) -> None:
        self.num_samples = 0
        self._stream = stream
        self._members = members
        self._names = set(members)
        self._suffixes = [f".{member}".encode() for member in (*members, "json")]
        self._suffix_sums = [sum(suffix) for suffix in self._suffixes]
        self._longest_key = _NAME_BYTES - max(map(len, self._suffixes))
        self._keys: set[bytes] = set()
        self._samples = bytearray()
        self._places = bytearray()
        self._offset = 0

    def write(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any],
        *,
        clip: str | None = None,
        code_key: str | None = None,
    ) -> None:
        """Appends `KEY.<member>` for each declared member and `KEY.json`.

        `clip` names what the sample shows (default: the key), the same for all its views;
        `code_key`, 32 hexadecimal digits, says how the arrays were made. ValueError when the
        sample does not fit: nothing of it is written then.
        """
        if not _KEY.fullmatch(key) or len(key) > self._longest_key:
            longest = min(90, self._longest_key)
            raise ValueError(f"key {key!r} must be 1 to {longest} letters, digits, '_' or '-'")
        if arrays.keys() != self._names:
            raise ValueError(f"sample {key} has {sorted(arrays)}, not {sorted(self._members)}")
        digest = key_bytes(key)
        if digest in self._keys:
            raise ValueError(f"sample {key} is in this shard already")
        sample = digest + clip_bytes(clip or key) + code_key_bytes(code_key)
        name = key.encode()
        name_sum = sum(name)
        pieces: list[Any] = []
        places = []
        offset = self._offset
        for number, suffix in enumerate(self._suffixes):
            if number < len(self._members):
                array = np.ascontiguousarray(arrays[self._members[number]])
                head, payload = array_header(array.dtype, array.shape), _bytes_of(array)
                length = len(head) + array.nbytes
                crc32 = zlib.crc32(payload, zlib.crc32(head))
            else:
                head, payload = b"", canonical_json(metadata)
                length, crc32 = len(payload), zlib.crc32(payload)
            if length > MAX_MEMBER_BYTES:
                raise ValueError(f"sample {key}: {suffix.decode()} of {length} bytes is too large")
            fields, field_sum = _size_fields(length)
            checksum = _CONSTANT_SUM + name_sum + self._suffix_sums[number] + field_sum
            pieces += (
                name,
                suffix,
                _NAME_END[len(name) + len(suffix)],
                fields,
                b"%06o" % checksum,
                _HEADER_END,
                head,
                payload,
                _PADDING[length % BLOCK_BYTES],
            )
            places.append(_PLACE.pack(offset + BLOCK_BYTES, length, crc32))
            offset += BLOCK_BYTES + length + -length % BLOCK_BYTES
        self._stream.write(b"".join(pieces))
        self._offset = offset
        self._keys.add(digest)
        self._samples += sample
        self._places += b"".join(places)
        self.num_samples += 1

    def close(self) -> bytes:
        """Ends the tar and returns its sidecar; the stream stays open."""
        self._stream.write(bytes(2 * BLOCK_BYTES))
        self._offset += 2 * BLOCK_BYTES
        members = (*self._members, "json")
        samples = np.frombuffer(self._samples, dtype=SAMPLE)
        places = np.frombuffer(self._places, dtype=PLACE).reshape(len(samples), len(members))
        return pack_sidecar(members, samples, places, self._offset)


@lru_cache(maxsize=8192)
def _size_fields(length: int) -> tuple[bytes, int]:
    """The header from behind the name up to the checksum, and what the length adds to the sum."""
    digits = b"%011o" % length
    return _MODE_AND_OWNER + digits + _TIME, sum(digits)


def _bytes_of(array: np.ndarray) -> Any:
    """The array's bytes without a copy, where its dtype lets them be shared."""
    return array if array.dtype.kind in "biufc" else array.tobytes()
