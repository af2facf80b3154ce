"""A stream that hashes what is written through it, so that a file need not be read again.

with open(path, "wb") as file:
    stream = HashingStream(file)
    writer = ShardWriter(stream, ("codes.npy",))
    ...
stream.sha256(), stream.size_bytes
"""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any


class HashingStream(io.RawIOBase):
    """Passes `write` on to `stream`; counts and hashes the bytes. It cannot seek."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.size_bytes = 0
        self._stream = stream
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size_bytes

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._stream.write(data)

    def sha256(self) -> str:
        """Hexadecimal digest of everything written so far."""
        return self._digest.hexdigest()
