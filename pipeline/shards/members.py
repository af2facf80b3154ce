"""Where one member of every sample lies, in those shards of some samples that were read so far.

    table = MemberTable(shards, "codes.npy", np.dtype("uint16"), check=True)
    rows = table.rows(shard_of, row_in_shard)
    table.starts[rows], table.ends[rows]

A shard costs nothing before it is read; then its samples are appended to the table, so that a batch
is looked up at once, however many shards it comes from.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from pipeline.shards.checksum import crc32
from pipeline.shards.format import ShardError
from pipeline.shards.npy import ArrayHeader
from pipeline.shards.shard import Shard

_NONE = np.empty(0, dtype=np.int64)
_UNREAD = -1


class MemberTable:
    """The payloads [starts, ends) of a member in their shards' tars, by row of the table.

    With `dtype` the member is an array: `starts` are behind its header, and all must be of that
    dtype and one shape, `array`. A member that a sample does not have is an empty payload. `check`
    False leaves out the crc32.
    """

    def __init__(
        self, shards: Sequence[Shard], member: str, dtype: np.dtype | None, check: bool
    ) -> None:
        self.starts = np.empty(0, dtype=np.int64)
        self.ends = np.empty(0, dtype=np.int64)
        self.array: ArrayHeader | None = None
        self._sums = np.empty(0, dtype=np.uint32)
        self._unchecked = np.empty(0, dtype=bool)
        self._shards = shards
        self._member = member
        self._dtype = dtype
        self._check = check
        self._count = 0
        self._first_row = np.full(len(shards), _UNREAD, dtype=np.int64)
        self._headers: dict[int, tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    def rows(self, shard_of: np.ndarray, row_in_shard: np.ndarray) -> np.ndarray:
        """int64: where these samples are in the table; shards not read before are read.

        ShardError when one is not like the others.
        """
        first = self._first_row[shard_of]
        if len(first) and first.min() == _UNREAD:
            for number in np.unique(shard_of[first == _UNREAD]).tolist():
                self.prepare(number)
            first = self._first_row[shard_of]
        return first + row_in_shard

    def prepare(self, number: int) -> None:
        """Makes a shard's samples known."""
        with self._lock:
            if self._first_row[number] == _UNREAD:
                self._append(number)

    def fresh(self, rows: np.ndarray) -> np.ndarray:
        """int64: the places in `rows` whose samples were never compared with their crc32."""
        return np.flatnonzero(self._unchecked[rows]) if self._check else _NONE

    def header_sums(self, shards: Sequence[int]) -> list[int]:
        """The crc32 of the header that the arrays of each shard must begin with."""
        return [self._headers[number][1] for number in shards]

    def compare(self, rows: np.ndarray, sums: list[int]) -> None:
        """These samples were read, with these crc32; DamagedSample at the first that is wrong."""
        expected = self._sums[rows].tolist()
        if sums == expected:
            self._unchecked[rows] = False
            return
        row = int(rows[next(i for i, pair in enumerate(zip(sums, expected)) if pair[0] != pair[1])])
        below = np.where((self._first_row <= row), self._first_row, _UNREAD)
        number = int(np.argmax(below))
        shard, row = self._shards[number], row - int(below[number])
        header = self._headers[number][0]
        start = int(shard.places(self._member)["offset"][row])
        alike = shard.opened().data[start : start + len(header)] == header
        reason = "is damaged (crc32)" if alike else "has another array header than its shard"
        raise shard.damaged(self._member, row, reason)

    def _append(self, number: int) -> None:
        shard, first = self._shards[number], self._count
        stop = first + shard.num_samples
        header, starts, ends, sums = self._read(shard)
        if stop > len(self.starts):
            self._grow(max(stop, 2 * first))
        self.starts[first:stop] = starts
        self.ends[first:stop] = ends
        self._sums[first:stop] = sums
        self._unchecked[first:stop] = True
        self._headers[number] = header, crc32(header)
        self._count = stop
        self._first_row[number] = first  # last: from now on other threads find it

    def _grow(self, capacity: int) -> None:
        for name in ("starts", "ends", "_sums", "_unchecked"):
            old = getattr(self, name)
            new = np.empty(capacity, dtype=old.dtype)
            new[: self._count] = old[: self._count]
            setattr(self, name, new)

    def _read(self, shard: Shard) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
        """(header, starts, ends, crc32) of a shard's samples."""
        if self._dtype is None and self._member not in shard.sidecar.members:
            nothing = np.zeros(shard.num_samples, dtype=np.int64)
            return b"", nothing, nothing, nothing
        places = shard.places(self._member)
        starts = places["offset"].astype(np.int64)
        ends = starts + places["length"]
        if len(ends) and (starts.min() < 0 or ends.max() > shard.sidecar.tar_bytes):
            raise ShardError(f"{shard.name}: the index points outside of the tar")
        if self._dtype is None:
            return b"", starts, ends, places["crc32"]
        array, header = shard.array_header(self._member)
        known = self.array.shape if self.array else array.shape
        if array.dtype != self._dtype or array.shape != known:
            raise ShardError(
                f"{shard.name}: {self._member} is {array.dtype} of shape {array.shape}, not "
                f"{self._dtype} of shape {known}"
            )
        self.array = array
        return header, starts + len(header), ends, places["crc32"]
