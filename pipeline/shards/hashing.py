"""A stream that hashes what is written through it, so that a file need not be read again.

with open(path, "wb") as file:
    stream = HashingStream(file)
    writer = ShardWriter(stream, ("codes.npy",))
    ...
stream.sha256(), stream.size_bytes
"""

from __future__ import annotations

import hashlib
from typing import IO


class HashingStream:
    """Passes `write` on to `stream`; counts and hashes the bytes. It cannot seek."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.size_bytes = 0
        self._stream = stream
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._stream.write(data)

    def sha256(self) -> str:
        """Hexadecimal digest of everything written so far."""
        return self._digest.hexdigest()
