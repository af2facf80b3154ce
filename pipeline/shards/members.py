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
        self._headers: dict[int, bytes] = {}
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

    def check(self, numbers: np.ndarray, groups: Sequence[tuple[int, int, int]]) -> None:
        """Compares those of `numbers` that were never read before with their crc32.

        `groups` are (shard, first, stop): the span of `numbers` in that shard. DamagedSample at the
        first that differs.
        """
        if not len(self._unchecked):
            return
        fresh = self._unchecked[numbers]
        if not fresh.any():
            return
        if not fresh.all():
            counts = np.concatenate([[0], np.cumsum(fresh)]).tolist()
            groups = [(number, counts[first], counts[stop]) for number, first, stop in groups]
            numbers = numbers[fresh]
        opened, headers = [], []
        for number, first, stop in groups:
            opened += [self._shards[number].opened()] * (stop - first)
            headers += [self._headers[number]] * (stop - first)
        starts, ends = self.starts[numbers].tolist(), self.ends[numbers].tolist()
        heads = [start - len(header) for start, header in zip(starts, headers)]
        sums = [crc32(each.memory[a:b]) for each, a, b in zip(opened, heads, ends)]
        self._compare(numbers, sums, self._sums[numbers].tolist(), "is damaged (crc32)")
        if self._dtype is not None:
            found = [each.data[a:b] for each, a, b in zip(opened, heads, starts)]
            other = "has another dtype or shape than its shard"
            self._compare(numbers, found, headers, other)
        self._unchecked[numbers] = False

    def _compare(self, numbers: np.ndarray, found: list, expected: list, reason: str) -> None:
        if found != expected:
            place = next(i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1])
            shard = int(np.searchsorted(self._bounds, numbers[place], side="right")) - 1
            row = int(numbers[place] - self._bounds[shard])
            raise self._shards[shard].damaged(self._member, row, reason)

    def _filled(self, number: int) -> bytes:
        shard = self._shards[number]
        first, stop = int(self._bounds[number]), int(self._bounds[number + 1])
        if self._dtype is None and self._member not in shard.sidecar.members:
            for each in (self.starts, self.ends, self._sums):
                each[first:stop] = 0
            return b""
        places = shard.places(self._member)
        if len(self._sums):
            self._sums[first:stop] = places["crc32"]
        self.starts[first:stop] = places["offset"]
        self.ends[first:stop] = self.starts[first:stop] + places["length"]
        if self._dtype is None:
            return b""
        array, header = shard.array_header(self._member)
        known = self.array.shape if self.array else array.shape
        if array.dtype != self._dtype or array.shape != known:
            raise ShardError(
                f"{shard.name}: {self._member} is {array.dtype} of shape {array.shape}, not "
                f"{self._dtype} of shape {known}"
            )
        self.array = array
        self.starts[first:stop] += len(header)
        return header
