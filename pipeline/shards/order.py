"""Orders of an epoch as pure functions: the sample at a position, without a table.

    order = Order(kind="window", seed=0, window_shards=8)
    order.items(np.arange(32), epoch=3, shard_counts=[1000, 1000, 700])

A permutation of `length` is a four-round Feistel network over the next power of four, walked until
it lands inside (cycle walking). Any worker can ask for any position, so a resumed run, or one with
another number of ranks, sees the same order.

    global   one permutation of all samples: the best shuffle, for data that fits in memory
    window   shards are permuted, and samples within every `window_shards` of them: for data that is
             larger than memory, or far away
    none     as they lie
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

OrderKind = Literal["global", "window", "none"]
_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Order:
    """How the samples of an epoch are ordered; `window_shards` is of kind "window" only."""

    kind: OrderKind = "global"
    seed: int = 0
    window_shards: int = 8

    def items(
        self, positions: Sequence[int] | np.ndarray, epoch: int, shard_counts: np.ndarray
    ) -> np.ndarray:
        """int64: the item at each position of `epoch`, a bijection of [0, sum(shard_counts)).

        Items are numbered in shard order; `shard_counts` [num_shards] says how many each has.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if self.kind == "none":
            return positions.copy()
        if self.kind == "global":
            return shuffled(positions, int(np.sum(shard_counts)), self.seed, epoch)
        return self._windowed(positions, epoch, np.asarray(shard_counts))

    def windows(self, epoch: int, shard_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of their windows, and where each window begins.

        int64 [num_shards], and the positions [num_windows + 1]: window i is
        [bounds[i], bounds[i + 1]) and reads shards[i * window_shards : (i + 1) * window_shards].
        """
        shards = shuffled(np.arange(len(shard_counts)), len(shard_counts), self.seed, epoch)
        ends = np.cumsum([0, *np.asarray(shard_counts)[shards]])
        bounds = ends[:: self.window_shards]
        return shards, bounds if bounds[-1] == ends[-1] else np.append(bounds, ends[-1])

    def _windowed(self, positions: np.ndarray, epoch: int, shard_counts: np.ndarray) -> np.ndarray:
        shards, bounds = self.windows(epoch, shard_counts)
        begins = np.cumsum([0, *shard_counts])[:-1]
        window_of = np.searchsorted(bounds, positions, side="right") - 1
        items = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(window_of):
            here = window_of == window
            first = bounds[window]
            inner = shuffled(
                positions[here] - first,
                int(bounds[window + 1] - first),
                self.seed,
                epoch,
                f"window {window}",
            )
            members = shards[window * self.window_shards : (window + 1) * self.window_shards]
            inner_ends = np.cumsum([0, *shard_counts[members]])
            place = np.searchsorted(inner_ends, inner, side="right") - 1
            items[here] = begins[members[place]] + inner - inner_ends[place]
        return items


def shuffled(
    positions: Sequence[int] | np.ndarray, length: int, seed: int, epoch: int, purpose: str = ""
) -> np.ndarray:
    """int64: the sample index at each position in [0, length) of the shuffled epoch."""
    values = np.asarray(positions, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= length):
        raise ValueError(f"positions must lie in [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch, length, purpose)
    result = _feistel(values.astype(np.uint64), half_bits, keys)
    outside = np.flatnonzero(result >= length)
    while outside.size:
        walked = _feistel(result[outside], half_bits, keys)
        result[outside] = walked
        outside = outside[walked >= length]
    return result.astype(np.int64)


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 on uint64: every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_words(*parts: int | str) -> np.ndarray:
    """Four uint64 words drawn from the parts."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return np.frombuffer(digest, dtype="<u8")


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << shift) | right


def _round_keys(seed: int, epoch: int, length: int, purpose: str) -> np.ndarray:
    parts = (seed, epoch, length, purpose) if purpose else (seed, epoch, length)
    return key_words(*parts)[:_ROUNDS]
