"""Writes one shard: a USTAR tar that stock WebDataset reads, and its sidecar.

    with open("0001.tar", "wb") as file:
        writer = ShardWriter(file, ("codes.npy",))
        writer.write("0001", {"codes.npy": codes}, {"caption": "a cat"})
        sidecar = writer.close()

Same samples, same bytes: keys in the order given, members adjacent, mtime, uid and gid zero, `.npy`
version 1 headers, JSON with sorted keys. The tar ends with two zero blocks.

A tar header is put together from constants, the name, the size and the checksum, whose sum is known
but for these; samples reach the stream some at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Protocol

import numpy as np

from pipeline.shards import checksum
from pipeline.shards.format import canonical_json
from pipeline.shards.npy import array_header
from pipeline.shards.sidecar import (
    BLOCK_BYTES,
    PLACE,
    SAMPLE,
    clip_bytes,
    code_key_bytes,
    key_bytes,
    pack_sidecar,
)

MAX_MEMBER_BYTES = (1 << 32) - 1
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KEY_BYTES = 90
_NAME_BYTES = 100
_WRITE_BYTES = 128 << 10  # samples are gathered up to here: fewer, larger writes, still in cache
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
        self._longest_key = min(_KEY_BYTES, _NAME_BYTES - 1 - max(map(len, (*members, "json"))))
        self._pack_places = Struct("<" + "QII" * (len(members) + 1)).pack
        self._ends: dict[int, list[tuple[str | None, bytes, int]]] = {}
        self._keys: set[bytes] = set()
        self._samples = bytearray()
        self._places = bytearray()
        self._waiting: list[bytes] = []
        self._written = 0
        self._offset = 0

    def write(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | bytes,
        *,
        clip: str | None = None,
        code_key: str | None = None,
    ) -> None:
        """Appends `KEY.<member>` for each declared member and `KEY.json`.

        `metadata` as bytes is JSON that was encoded before, copied as it is. `clip` names what the
        sample shows (default: the key), the same for all its views; `code_key`, 32 hexadecimal
        digits, says how the arrays were made. ValueError when the sample does not fit: nothing of
        it is written then.
        """
        if not _KEY.fullmatch(key) or len(key) > self._longest_key:
            raise ValueError(
                f"key {key!r} must be 1 to {self._longest_key} letters, digits, '_' or '-'"
            )
        if arrays.keys() != self._names:
            raise ValueError(f"sample {key} has {sorted(arrays)}, not {sorted(self._members)}")
        digest = key_bytes(key)
        if digest in self._keys:
            raise ValueError(f"sample {key} is in this shard already")
        sample = digest + clip_bytes(clip or key) + code_key_bytes(code_key)
        name = key.encode()
        name_sum = sum(name)
        pieces: list[Any] = []
        places: list[int] = []
        offset = self._offset
        for member, suffix, suffix_sum in self._name_ends(len(name)):
            if member is None:
                start, head_bytes, crc32 = _HEADER_END, 0, 0
                payload: Any = metadata if isinstance(metadata, bytes) else canonical_json(metadata)
                length = len(payload)
            else:
                array = np.ascontiguousarray(arrays[member])
                start, head_bytes, crc32 = _array_start(array.dtype, array.shape)
                payload = array if array.dtype.kind in "biufc" else array.tobytes()
                length = head_bytes + array.nbytes
            fields, field_sum, padding = _size_fields(length)
            header_sum = b"%06o" % (_CONSTANT_SUM + name_sum + suffix_sum + field_sum)
            pieces += (name, suffix, fields, header_sum, start, payload, padding)
            places += (offset + BLOCK_BYTES, length, checksum.crc32(payload, crc32))
            offset += BLOCK_BYTES + length + len(padding)
        self._waiting.append(b"".join(pieces))
        self._offset = offset
        if offset - self._written >= _WRITE_BYTES:
            self._flush()
        self._keys.add(digest)
        self._samples += sample
        self._places += self._pack_places(*places)
        self.num_samples += 1

    def close(self) -> bytes:
        """Ends the tar and returns its sidecar; the stream stays open."""
        self._waiting.append(bytes(2 * BLOCK_BYTES))
        self._offset += 2 * BLOCK_BYTES
        self._flush()
        members = (*self._members, "json")
        samples = np.frombuffer(self._samples, dtype=SAMPLE)
        places = np.frombuffer(self._places, dtype=PLACE).reshape(len(samples), len(members))
        return pack_sidecar(members, samples, places, self._offset)

    def _name_ends(self, key_bytes: int) -> list[tuple[str | None, bytes, int]]:
        """Member (None: JSON), rest of the name field and its sum, for keys of this length."""
        if key_bytes not in self._ends:
            suffixes = [(member, f".{member}".encode()) for member in self._members]
            self._ends[key_bytes] = [
                (member, suffix.ljust(_NAME_BYTES - key_bytes, b"\0"), sum(suffix))
                for member, suffix in [*suffixes, (None, b".json")]
            ]
        return self._ends[key_bytes]

    def _flush(self) -> None:
        self._stream.write(b"".join(self._waiting))
        self._waiting.clear()
        self._written = self._offset


@lru_cache(maxsize=8192)
def _size_fields(length: int) -> tuple[bytes, int, bytes]:
    """The header from behind the name up to the checksum, the sum of the size, the padding."""
    if length > MAX_MEMBER_BYTES:
        raise ValueError(f"a member of {length} bytes is too large")
    digits = b"%011o" % length
    return _MODE_AND_OWNER + digits + _TIME, sum(digits), bytes(-length % BLOCK_BYTES)


@lru_cache(maxsize=4096)
def _array_start(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[bytes, int, int]:
    """The end of the tar header and the array's header; the latter's length and crc32."""
    head = array_header(dtype, shape)
    return _HEADER_END + head, len(head), checksum.crc32(head)
