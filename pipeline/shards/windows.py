"""Windows of remote shards: the next one is fetched while this one is read.

    fetcher = WindowFetcher(stream)
    fetcher.at(position)            # before each batch: starts fetching when a new window begins

Only for streams of order "window" over remote shards. Shards that left the window are closed, so
that the cache may remove them. A fetch that fails is tried again by whoever reads the shard.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.shards.stream import Stream


class WindowFetcher:
    """Fetches ahead for one stream, one shard at a time, in a thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._span = (0, 0)  # the positions of the window being read
        self._pool = ThreadPoolExecutor(1, "fetch-ahead")
        self._waiting: list[Future[None]] = []

    def at(self, position: int) -> None:
        """The stream is read at `position` now."""
        with self._lock:
            if self._span[0] <= position < self._span[1]:
                return
            epoch, place = divmod(position, self._stream.epoch_length)
            _, bounds = self._stream.order.windows(epoch, self._stream.shard_counts)
            number = int(np.searchsorted(bounds, place, side="right")) - 1
            first = epoch * self._stream.epoch_length
            span = int(first + bounds[number]), int(first + bounds[number + 1])
            if span[1] == self._span[0]:
                return  # another thread is a batch behind
            self._span = span
            for waiting in self._waiting:
                waiting.cancel()
            is_last = number + 2 == len(bounds)
            following = (epoch + 1, 0) if is_last else (epoch, number + 1)
            wanted = [*self._shards(epoch, number), *self._shards(*following)]
            shards = self._stream.samples.shards
            kept = set(wanted)
            for each, shard in enumerate(shards):
                if shard.map is not None and each not in kept:
                    shard.close()
            self._waiting = [self._pool.submit(shards[each].fetch) for each in wanted]

    def close(self) -> None:
        """Stops fetching; a shard on its way is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _shards(self, epoch: int, window: int) -> list[int]:
        shards, _ = self._stream.order.windows(epoch, self._stream.shard_counts)
        size = self._stream.order.window_shards
        return shards[window * size : (window + 1) * size].tolist()
