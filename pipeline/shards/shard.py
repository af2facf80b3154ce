"""One shard under a memory map: opened when it is first read, checked as it is read.

    shard = Shard(name="parts/0.tar", num_samples=1000, open_file=..., read_sidecar=...)
    shard.places("json")[17]                  # offset, length, crc32
    shard.opened().data[offset : offset + length]

Its sidecar is parsed at the first read and kept; the map itself is one of a bounded number that a
process keeps, the least recently used is let go. A map keeps its file open, and with it the lock by
which the cache of remote shards knows what is in use.
"""

from __future__ import annotations

import itertools
import mmap
import resource
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import IO

import numpy as np

from pipeline.shards.format import ShardError
from pipeline.shards.memory import address_of
from pipeline.shards.npy import MAX_HEADER_BYTES, ArrayHeader, parse_array_header
from pipeline.shards.sidecar import Sidecar

BLOCK_BYTES = 512
_MAX_MAPS = 4096


class DamagedSample(ShardError):
    """A sample whose bytes are not what its shard's index says."""

    def __init__(self, key: str, shard: str, offset: int, row: int, reason: str) -> None:
        super().__init__(f"{shard}: sample {key} (row {row}) at byte {offset} {reason}")
        self.key = key
        self.shard = shard
        self.offset = offset
        self.row = row


class Shard:
    """Samples [0, num_samples) of one tar.

    `open_file` gives the tar, open for reading; `read_sidecar` its sidecar. Both are called when a
    sample is first read. `name` is what errors call it. A remote shard is worth fetching ahead.
    """

    def __init__(
        self,
        *,
        name: str,
        num_samples: int,
        open_file: Callable[[], IO[bytes]],
        read_sidecar: Callable[[], Sidecar],
        is_remote: bool = False,
    ) -> None:
        self.name = name
        self.num_samples = num_samples
        self.is_remote = is_remote
        self.map: ShardMap | None = None  # set and let go by `_Maps`
        self._open_file = open_file
        self._read_sidecar = read_sidecar
        self._sidecar: Sidecar | None = None

    @property
    def sidecar(self) -> Sidecar:
        """Where its members lie; ShardError when the index is not about these samples."""
        if self._sidecar is None:
            sidecar = self._read_sidecar()
            if len(sidecar.places) != self.num_samples or not self.num_samples:
                raise ShardError(f"{self.name}: {len(sidecar.places)} samples in the index")
            self._sidecar = sidecar
        return self._sidecar

    def places(self, member: str) -> np.ndarray:
        """PLACE [num_samples] of a member; ShardError when the shard has none of this name."""
        sidecar = self.sidecar
        if member not in sidecar.members:
            raise ShardError(f"{self.name}: no member {member!r} in the index")
        return sidecar.places[:, sidecar.members.index(member)]

    def opened(self) -> ShardMap:
        """Its map, made if need be; whoever holds it keeps it open."""
        return _MAPS.get(self)

    def fetch(self) -> None:
        """Brings a remote shard into the cache."""
        self._open_file().close()

    def close(self) -> None:
        """Lets its map go; who is reading from it can read on."""
        _MAPS.forget([self])

    def array_header(self, member: str) -> tuple[ArrayHeader, bytes]:
        """What the arrays of `member` are, and the bytes that each begins with.

        ShardError unless all are of one size, in C order, and not empty.
        """
        places = self.places(member)
        if places["length"].min() != places["length"].max():
            raise ShardError(f"{self.name}: arrays of different sizes in one bucket")
        offset, length = int(places["offset"][0]), int(places["length"][0])
        head = self.opened().data[offset : offset + min(length, MAX_HEADER_BYTES)]
        where = f"{self.name} at byte {offset}"
        array = parse_array_header(head, where)
        if array.fortran_order or not array.payload_bytes:
            raise ShardError(f"{where}: arrays must be in C order, and not empty")
        if array.header_bytes + array.payload_bytes != length:
            raise ShardError(f"{where}: {length} bytes for shape {array.shape}")
        return array, head[: array.header_bytes]

    def damaged(self, member: str, row: int, reason: str) -> DamagedSample:
        """The error about a row."""
        offset = int(self.places(member)[row]["offset"])
        return DamagedSample(self.key(member, row), self.name, offset, row, reason)

    def key(self, member: str, row: int) -> str:
        """The key of a row, from the tar header of one of its members."""
        offset = int(self.places(member)[row]["offset"])
        name = self.opened().data[max(0, offset - BLOCK_BYTES) : offset][:100]
        return name.split(b"\0")[0].decode("utf-8", "replace").removesuffix(f".{member}")

    def open_map(self) -> ShardMap:
        """A new map of the file, whose size must be the index's."""
        with self._open_file() as file:
            return ShardMap(file, self.name, self.sidecar.tar_bytes)


class ShardMap:
    """A read-only memory map of a shard."""

    def __init__(self, file: IO[bytes], name: str, size_bytes: int) -> None:
        try:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ShardError(f"{name}: empty file") from None
        if len(self.data) != size_bytes:
            raise ShardError(f"{name}: {len(self.data)} bytes, the index says {size_bytes}")
        self.last_use = 0
        self.address = address_of(self.data)


class _Maps:
    """The open maps of this process, at most `limit`; those not used for longest go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._clock = itertools.count()
        self._open: weakref.WeakSet[Shard] = weakref.WeakSet()

    def get(self, shard: Shard) -> ShardMap:
        opened = shard.map or self._opened(shard)
        opened.last_use = next(self._clock)
        return opened

    def _opened(self, shard: Shard) -> ShardMap:
        opened = shard.open_map()  # outside of the lock: it may be fetched, which may need room
        with self._lock:
            if len(self._open) >= self._limit:
                self._forget(self._oldest())
            shard.map = opened
            self._open.add(shard)
        return opened

    def remote(self) -> list[Shard]:
        """The remote shards that are open."""
        with self._lock:
            return [shard for shard in self._open if shard.is_remote]

    def forget(self, shards: Iterable[Shard]) -> None:
        """Lets maps go; one that another thread is reading from lives until it is done."""
        with self._lock:
            self._forget(shards)

    def _forget(self, shards: Iterable[Shard]) -> None:
        for shard in shards:
            shard.map = None
            self._open.discard(shard)

    def _oldest(self) -> list[Shard]:
        by_use = sorted(self._open, key=lambda each: each.map.last_use if each.map else 0)
        return by_use[: self._limit // 4 + 1]


def let_go() -> None:
    """Closes the remote shards that this process has open, so that the cache can remove them."""
    _MAPS.forget(_MAPS.remote())


def _map_limit() -> int:
    """Half of the files that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(_MAX_MAPS, soft // 2 if soft > 0 else _MAX_MAPS))


_MAPS = _Maps(_map_limit())
