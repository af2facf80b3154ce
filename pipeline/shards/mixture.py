"""Turns by weight: an endless sequence of slots, dealt to several takers in exact shares.

    turns = Turns([3, 1], block=1000, key=(seed, "mixture"))
    taker, turn = turns.at(np.arange(32))     # who has the slot, and how often it had one before

Slots are dealt in blocks. In each block every taker has the same number of slots (its share of the
block, by largest remainder, at least one), spread evenly but for a draw: its n-th of q turns falls
into the n-th q-th of the block. So `turn` counts 0, 1, 2, ... for each taker without gaps,
whichever slot is asked for first: a taker that gives its n-th sample at its n-th turn gives each
exactly once, and there is no state.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from pipeline.shards.order import key_words, mixed

_KEPT_BLOCKS = 4


class Turns:
    """Deals slots to takers by `weights`; `key` names the random order of each block."""

    def __init__(self, weights: Sequence[float], block: int, key: tuple[int | str, ...]) -> None:
        self.quotas = quotas(weights, block)
        self._block = block
        self._key = key
        self._lock = threading.Lock()
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def at(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(taker, turn), int64 each, of these slots."""
        if len(self.quotas) == 1:
            return np.zeros(len(slots), dtype=np.int64), np.asarray(slots, dtype=np.int64)
        takers = np.empty(len(slots), dtype=np.int64)
        turns = np.empty(len(slots), dtype=np.int64)
        blocks, places = np.divmod(slots, self._block)
        for block in np.unique(blocks):
            here = blocks == block
            taker, earlier = self._table(int(block))
            takers[here] = taker[places[here]]
            turns[here] = block * self.quotas[takers[here]] + earlier[places[here]]
        return takers, turns

    def _table(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Who has each slot of a block, and how many of the block's slots it had before."""
        with self._lock:
            found = self._tables.get(block)
            if found is not None:
                return found
        drawn = mixed(
            mixed(np.arange(self._block, dtype=np.uint64)) ^ key_words(*self._key, block)[0]
        )
        takers = np.repeat(np.arange(len(self.quotas)), self.quotas)
        earlier = np.concatenate([np.arange(quota) for quota in self.quotas])
        moments = (earlier + drawn / 2.0**64) / self.quotas[takers]
        order = np.argsort(moments, kind="stable")
        takers, earlier = takers[order], earlier[order]
        with self._lock:
            while len(self._tables) >= _KEPT_BLOCKS:
                del self._tables[next(iter(self._tables))]
            self._tables[block] = takers, earlier
        return takers, earlier


def quotas(weights: Sequence[float], total: int) -> np.ndarray:
    """int64: `total` in parts by weight, by largest remainder, but at least one each."""
    if not len(weights) or len(weights) > total:
        raise ValueError(f"weights: between 1 and {total}, not {len(weights)}")
    if min(weights) <= 0 or not np.isfinite(weights).all():
        raise ValueError(f"weights must be positive numbers, not {list(weights)}")
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    parts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while parts.sum() < total:
        parts[np.argmax(exact - parts)] += 1
    while parts.sum() > total:
        parts[np.argmax(np.where(parts > 1, parts - exact, -np.inf))] -= 1
    return parts
