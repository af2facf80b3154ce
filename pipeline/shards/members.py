"""Where one member of every sample lies, in all shards of some samples; filled shard by shard.

    table = MemberTable(shards, bounds, "codes.npy", np.dtype("uint16"), check=True)
    table.prepare([3, 7])                    # the shards that are read next
    table.starts[numbers], table.ends[numbers]

Samples are numbered through all shards: shard i has [bounds[i], bounds[i + 1]). A shard costs
nothing before it is read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from zlib import crc32

import numpy as np

from pipeline.shards.format import ShardError
from pipeline.shards.npy import ArrayHeader
from pipeline.shards.shard import Shard

_NONE = np.empty(0, dtype=np.int64)


class MemberTable:
    """The payloads [starts, ends) of a member in their shards' tars.

    With `dtype` the member is an array: `starts` are behind its header, and all must be of that
    dtype and one shape, `array`. A member that a sample does not have is an empty payload.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        bounds: np.ndarray,
        member: str,
        dtype: np.dtype | None,
        check: bool,
    ) -> None:
        count = int(bounds[-1])
        self.starts = np.empty(count, dtype=np.int64)
        self.ends = np.empty(count, dtype=np.int64)
        self.array: ArrayHeader | None = None
        self._shards = shards
        self._bounds = bounds
        self._member = member
        self._dtype = dtype
        self._headers: dict[int, tuple[bytes, int]] = {}
        self._lock = threading.Lock()
        self._unchecked = np.ones(count if check else 0, dtype=bool)
        self._sums = np.empty(count if check else 0, dtype=np.uint32)

    def prepare(self, shards: Sequence[int]) -> None:
        """Makes the rows of these shards known; ShardError when one is not like the others."""
        if self._headers.keys() >= set(shards):
            return
        with self._lock:
            for number in shards:
                if number not in self._headers:
                    self._headers[number] = self._filled(number)

    def fresh(self, numbers: np.ndarray) -> np.ndarray:
        """int64: where in `numbers` the samples are that were never compared with their crc32."""
        if not len(self._unchecked):
            return _NONE
        return np.flatnonzero(self._unchecked[numbers])

    def header_sums(self, shards: Sequence[int]) -> list[int]:
        """The crc32 of the header that the arrays of each shard must begin with."""
        return [self._headers[number][1] for number in shards]

    def compare(self, numbers: np.ndarray, sums: list[int]) -> None:
        """These samples were read, with these crc32; DamagedSample at the first that is wrong."""
        expected = self._sums[numbers].tolist()
        if sums == expected:
            self._unchecked[numbers] = False
            return
        place = next(i for i, pair in enumerate(zip(sums, expected)) if pair[0] != pair[1])
        number = int(np.searchsorted(self._bounds, numbers[place], side="right")) - 1
        shard, row = self._shards[number], int(numbers[place] - self._bounds[number])
        header = self._headers[number][0]
        start = int(shard.places(self._member)["offset"][row])
        alike = shard.opened().data[start : start + len(header)] == header
        reason = "is damaged (crc32)" if alike else "has another array header than its shard"
        raise shard.damaged(self._member, row, reason)

    def _filled(self, number: int) -> tuple[bytes, int]:
        shard = self._shards[number]
        first, stop = int(self._bounds[number]), int(self._bounds[number + 1])
        if self._dtype is None and self._member not in shard.sidecar.members:
            for each in (self.starts, self.ends, self._sums):
                each[first:stop] = 0
            return b"", 0
        places = shard.places(self._member)
        if len(self._sums):
            self._sums[first:stop] = places["crc32"]
        self.starts[first:stop] = places["offset"]
        self.ends[first:stop] = self.starts[first:stop] + places["length"]
        if self._dtype is None:
            return b"", 0
        array, header = shard.array_header(self._member)
        known = self.array.shape if self.array else array.shape
        if array.dtype != self._dtype or array.shape != known:
            raise ShardError(
                f"{shard.name}: {self._member} is {array.dtype} of shape {array.shape}, not "
                f"{self._dtype} of shape {known}"
            )
        self.array = array
        self.starts[first:stop] += len(header)
        return header, crc32(header)
