"""All maps of this process as one array: payloads of many shards are copied by one call.

    read_items(addresses, size_bytes)       # V<size_bytes> [n]: the bytes at these addresses

A batch of a shuffled epoch comes from many shards, a few rows of each. Copying it shard by shard
costs a call and a scatter per shard, as much as the copying itself. But all maps lie in one address
space already, the process's, and numpy can index that like any other array.

Nothing checks the addresses here: the caller has seen to it that each is inside a map it holds,
with `size_bytes` behind it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

_FIRST = mmap.PAGESIZE  # numpy takes no array at address zero
_SPACE: Any = (ctypes.c_ubyte * (1 << 52)).from_address(_FIRST)  # more than any processor maps


def read_items(addresses: np.ndarray, size_bytes: int) -> np.ndarray:
    """V<size_bytes> [n]: a copy of the bytes at each address, int64 [n]."""
    dtype = np.dtype(f"V{size_bytes}")
    if not len(addresses):
        return np.empty(0, dtype)
    low = int(addresses.min())
    count = int(addresses.max()) - low + 1
    if count * size_bytes > sys.maxsize:  # numpy counts overlapping items as if they did not
        return np.concatenate([read_items(each, size_bytes) for each in addresses[:, None]])
    items: np.ndarray = np.ndarray((count,), dtype, _SPACE, offset=low - _FIRST, strides=(1,))
    return items[addresses - low]


def address_of(data: mmap.mmap) -> int:
    """Where a map begins."""
    return np.frombuffer(data, dtype=np.uint8).ctypes.data
