"""Writes one shard: a USTAR tar that stock WebDataset reads, and its sidecar.

Same samples, same bytes: keys in the order given, members adjacent, mtime, uid and gid zero, `.npy`
version 1 headers, JSON with sorted keys. The tar ends with two zero blocks.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pipeline.shards.format import canonical_json
from pipeline.shards.sidecar import (
    PLACE,
    SAMPLE,
    clip_digest,
    code_key_words,
    key_digest,
    pack_sidecar,
)

BLOCK_BYTES = 512
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")


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
        self._samples: list[tuple] = []
        self._places: list[list[tuple[int, int, int]]] = []
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
        `code_key`, 32 hexadecimal digits, says how the arrays were made.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} must be 1 to 90 letters, digits, '_' or '-'")
        if set(arrays) != set(self._members):
            raise ValueError(f"sample {key} has {sorted(arrays)}, not {sorted(self._members)}")
        places = [
            self._append(f"{key}.{member}", _npy_bytes(arrays[member])) for member in self._members
        ]
        places.append(self._append(f"{key}.json", canonical_json(dict(metadata))))
        self._samples.append((key_digest(key), clip_digest(clip or key), code_key_words(code_key)))
        self._places.append(places)
        self.num_samples += 1

    def close(self) -> bytes:
        """Ends the tar and returns its sidecar; the stream stays open."""
        self._stream.write(bytes(2 * BLOCK_BYTES))
        self._offset += 2 * BLOCK_BYTES
        members = (*self._members, "json")
        samples = np.array(self._samples, dtype=SAMPLE)
        places = np.array(self._places, dtype=PLACE).reshape(len(samples), len(members))
        return pack_sidecar(members, samples, places, self._offset)

    def _append(self, name: str, payload: bytes) -> tuple[int, int, int]:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        header.mode = 0o444
        self._stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        self._stream.write(payload)
        padding = -len(payload) % BLOCK_BYTES
        self._stream.write(bytes(padding))
        offset = self._offset + BLOCK_BYTES
        self._offset = offset + len(payload) + padding
        return offset, len(payload), zlib.crc32(payload)


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()
