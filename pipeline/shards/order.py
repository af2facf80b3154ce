"""Shuffling as a pure function: the sample at a position of an epoch, without a table.

A permutation of `length` is a four-round Feistel network over the next power of four, walked until
it lands inside (cycle walking). Any worker can ask for any position, so a resumed run, or one with
another number of ranks, sees the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_ROUNDS = 4


def shuffled(
    positions: Sequence[int] | np.ndarray, length: int, seed: int, epoch: int
) -> np.ndarray:
    """int64: the sample index at each position in [0, length) of the shuffled epoch."""
    values = np.asarray(positions, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= length):
        raise ValueError(f"positions must lie in [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch, length)
    result = _feistel(values.astype(np.uint64), half_bits, keys)
    outside = result >= length
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= length
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int, length: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed} {epoch} {length}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8")[:_ROUNDS]
