"""A batch: what is read for some slots of a step, with damaged samples raised or replaced.

reader = BatchReader(streams, token_sets=("latents",), metadata=True, skip_damaged=False)
arrays, metadata, others = reader.read(slots)      # slots: a GlobalBatch, or a rank's part
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.shards.format import Bucket, ShardError
from pipeline.shards.samples import Samples
from pipeline.shards.shard import DamagedSample
from pipeline.shards.steps import GlobalBatch
from pipeline.shards.stream import Stream

_MOST_DAMAGED = 1000  # in a row, before a reader that skips gives up
_Places = tuple[int, slice | np.ndarray]
Contents = tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's part of a global batch: its places [start, stop) of `global_size`.

    `arrays` [n, ...] of the primary token set, `others` those of further sets by name;
    `is_padding` [n] marks repeated samples that only fill the batch up.
    """

    bucket: Bucket
    arrays: np.ndarray
    metadata: list[dict[str, Any]]
    is_padding: np.ndarray
    start: int
    stop: int
    global_size: int
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays)

    def part(self, start: int, stop: int) -> Batch:
        """The places [start, stop) of this part."""
        chosen = slice(start, stop)
        return replace(
            self,
            arrays=self.arrays[chosen],
            metadata=self.metadata[chosen],
            is_padding=self.is_padding[chosen],
            start=self.start + start,
            stop=self.start + stop,
            others={name: each[chosen] for name, each in self.others.items()},
        )


class BatchReader:
    """Reads slots of `streams` by (source, bucket): primary arrays, metadata, `token_sets`.

    With `skip_damaged` the next sound sample of the order takes a damaged one's place; `damaged`
    holds the error about each, by shard and row.
    """

    def __init__(
        self,
        streams: Mapping[tuple[int, str], Stream],
        token_sets: tuple[str, ...],
        metadata: bool,
        skip_damaged: bool,
    ) -> None:
        self.damaged: dict[tuple[str, int], DamagedSample] = {}
        self._streams = streams
        self._num_sources = Counter(bucket for _, bucket in streams)
        self._names = (None, *token_sets)
        self._metadata = metadata
        self._skip_damaged = skip_damaged
        self._lock = threading.Lock()

    def items(self, part: GlobalBatch) -> np.ndarray:
        """int64: the sample of its source in each slot."""
        return self._items(part, self._places(part))

    def read(self, part: GlobalBatch) -> Contents:
        """Arrays, metadata and further arrays of these slots."""
        places = self._places(part)
        items = self._items(part, places)
        try:
            return self._read_items(part, places, items)
        except DamagedSample:
            if not self._skip_damaged:
                raise
        for place in range(len(items)):
            items[place] = self._sound(part, place, int(items[place]))
        return self._read_items(part, places, items)

    def _items(self, part: GlobalBatch, sources: Sequence[_Places]) -> np.ndarray:
        if len(sources) == 1:
            return self._streams[sources[0][0], part.bucket].at(part.positions)
        items = np.empty(len(part.sources), dtype=np.int64)
        for source, places in sources:
            items[places] = self._streams[source, part.bucket].at(part.positions[places])
        return items

    def _sound(self, part: GlobalBatch, place: int, item: int) -> int:
        """The sample at a place, or the first one behind it in the order that can be read."""
        stream = self._streams[int(part.sources[place]), part.bucket]
        for further in range(1, _MOST_DAMAGED + 1):
            try:
                self._read_one(stream.samples, item)
                return item
            except DamagedSample as error:
                with self._lock:
                    self.damaged[error.shard, error.row] = error
            item = int(stream.at(part.positions[place : place + 1] + further)[0])
        raise ShardError(f"{_MOST_DAMAGED} damaged samples in a row: {self._last_damaged()}")

    def _last_damaged(self) -> DamagedSample:
        return next(reversed(self.damaged.values()))

    def _read_one(self, samples: Samples, item: int) -> None:
        selection = samples.select([item])
        for name in self._names:
            selection.gather(name)
        if self._metadata:
            selection.metadata()

    def _read_items(
        self, part: GlobalBatch, sources: Sequence[_Places], items: np.ndarray
    ) -> Contents:
        """Arrays, metadata and further arrays of these samples, each from its source."""
        found: dict[str | None, np.ndarray] = {}
        metadata: list[dict[str, Any]] = [{}] * len(items)
        for source, places in sources:
            selection = self._streams[source, part.bucket].samples.select(items[places])
            for name in self._names:
                arrays = selection.gather(name)
                if len(arrays) == len(items):
                    found[name] = arrays
                    continue
                if name not in found:
                    found[name] = np.empty((len(items), *arrays.shape[1:]), dtype=arrays.dtype)
                if found[name].shape[1:] != arrays.shape[1:] or found[name].dtype != arrays.dtype:
                    raise ShardError(f"bucket {part.bucket}: sources of different shape or dtype")
                found[name][places] = arrays
            if not self._metadata:
                continue
            if isinstance(places, slice):
                metadata = selection.metadata()
            else:
                for place, each in zip(places.tolist(), selection.metadata()):
                    metadata[place] = each
        primary = found.pop(None)
        return primary, metadata, {str(name): arrays for name, arrays in found.items()}

    def _places(self, part: GlobalBatch) -> list[_Places]:
        """Each source of these slots, and which of them it has."""
        sources = part.sources
        if self._num_sources[part.bucket] == 1 or (sources == sources[0]).all():
            return [(int(sources[0]), slice(None))]
        return [(each, np.flatnonzero(sources == each)) for each in np.unique(sources).tolist()]
