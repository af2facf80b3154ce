"""A stream: the endless shuffled epochs of some samples, asked for by position.

    stream = Stream(samples, Order(kind="global", seed=0), one_view=True)
    stream.at(np.arange(stream.epoch_length, stream.epoch_length + 32))   # the second epoch's first

Position p is place p % epoch_length of epoch p // epoch_length. Every epoch shows every sample
once, or every clip by one of its views. Orders are computed a few thousand places at a time.
"""

from __future__ import annotations

import threading

import numpy as np

from pipeline.shards.order import Order
from pipeline.shards.samples import Samples
from pipeline.shards.views import find_views

_CHUNK = 8192
_KEPT_CHUNKS = 4


class Stream:
    """The epochs of `samples` in an order; `one_view` shows each clip once an epoch."""

    def __init__(self, samples: Samples, order: Order, one_view: bool = True) -> None:
        self.samples = samples
        self.order = order
        self._views = find_views(samples.clips(), samples.shard_counts) if one_view else None
        self.shard_counts = self._views.shard_counts if self._views else samples.shard_counts
        self.epoch_length = int(self.shard_counts.sum())
        self._chunks_an_epoch = -(-self.epoch_length // _CHUNK)
        self._lock = threading.Lock()
        self._chunks: dict[int, np.ndarray] = {}

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64: the sample at each position."""
        if len(positions) and (run := self._run(positions)) is not None:
            return run
        epochs, places = np.divmod(positions, self.epoch_length)
        chunks, inner = np.divmod(places, _CHUNK)
        chunks += epochs * self._chunks_an_epoch
        found = np.empty(len(positions), dtype=np.int64)
        for chunk in np.unique(chunks):
            here = chunks == chunk
            found[here] = self._chunk(int(chunk))[inner[here]]
        return found

    def _run(self, positions: np.ndarray) -> np.ndarray | None:
        """The samples of consecutive positions in one chunk, which most batches are."""
        first, count = int(positions[0]), len(positions)
        if int(positions[-1]) - first != count - 1 or (positions[1:] <= positions[:-1]).any():
            return None
        epoch, place = divmod(first, self.epoch_length)
        chunk, inner = divmod(place, _CHUNK)
        if inner + count > min(_CHUNK, self.epoch_length - chunk * _CHUNK):
            return None
        found = self._chunk(epoch * self._chunks_an_epoch + chunk)
        return found[inner : inner + count].copy()

    def _chunk(self, chunk: int) -> np.ndarray:
        with self._lock:
            found = self._chunks.get(chunk)
            if found is not None:
                return found
        epoch, number = divmod(chunk, self._chunks_an_epoch)
        first = number * _CHUNK
        places = np.arange(first, min(first + _CHUNK, self.epoch_length))
        items = self.order.items(places, epoch, self.shard_counts)
        if self._views is not None:
            items = self._views.samples(items, self.order.seed, epoch)
        with self._lock:
            while len(self._chunks) >= _KEPT_CHUNKS:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[chunk] = items
        return items
