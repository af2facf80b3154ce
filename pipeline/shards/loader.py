"""Batches for a trainer: any step's batch from the step alone, read ahead by a thread.

    dataset = open_dataset("runs/demo/data", where="motion > 0.5")
    loader = Loader(dataset.by_bucket("train"), LoaderConfig(global_batch_size=256, seed=0))
    for step, batch in enumerate(loader.batches(first_step=0, stop_step=1000)):
        batch.arrays, batch.metadata         # uint16 [256, num_tokens], 256 dicts

A mixture is several `Source`s with weights. On rank r of w, give both: the global batch of a step
is the same for any number of ranks, and each rank reads its share of it. `state(step)` is what a
checkpoint keeps to continue at `step`, and `resume(state)` gives the step back.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.shards.format import Bucket, ShardError, canonical_json
from pipeline.shards.order import Order
from pipeline.shards.prefetch import ReadAhead
from pipeline.shards.samples import Samples
from pipeline.shards.shard import DamagedSample
from pipeline.shards.steps import GlobalBatch, Steps, Tail
from pipeline.shards.stream import Stream
from tokenizer.settings import UserError

STATE_VERSION = 1
_MOST_DAMAGED = 1000  # in a row, before a loader that skips gives up


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What decides which samples a step sees, and how they are read.

    `tail` is a policy (see `steps`) for all buckets or one by name; `views` "one" shows each clip
    once an epoch; `damaged` "skip" puts the next sound sample of the order in a damaged one's
    place. `token_sets` are read beside the primary one. `threads` read `depth` batches ahead.
    """

    global_batch_size: int
    seed: int = 0
    order: Literal["global", "window", "none"] = "global"
    window_shards: int = 8
    tail: Tail | Mapping[str, Tail] = "wrap"
    views: Literal["one", "all"] = "one"
    damaged: Literal["raise", "skip"] = "raise"
    token_sets: tuple[str, ...] = ()
    metadata: bool = True
    threads: int = 1
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples by bucket, and their share in a mixture."""

    samples: Mapping[str, Samples]
    weight: float = 1.0


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


class Loader:
    """The batches of one rank; UserError when settings and samples do not fit together."""

    def __init__(
        self,
        sources: Mapping[str, Samples] | Sequence[Source],
        config: LoaderConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if config.global_batch_size < world_size:
            raise UserError(
                f"global_batch_size ({config.global_batch_size}) must be at least one sample for "
                f"each of {world_size} ranks"
            )
        self.config = config
        self.damaged: dict[tuple[str, int], DamagedSample] = {}
        self._rank, self._world_size = rank, world_size
        self._lock = threading.Lock()
        if isinstance(sources, Mapping):
            sources = [Source(samples=sources)]
        order = Order(kind=config.order, seed=config.seed, window_shards=config.window_shards)
        self._streams = {
            (index, bucket): Stream(samples, order, config.views == "one")
            for index, source in enumerate(sources)
            for bucket, samples in source.samples.items()
        }
        self._buckets = {bucket: each.samples.bucket for (_, bucket), each in self._streams.items()}
        self._steps = Steps(
            _by_bucket(sources, self._streams),
            _tails(config.tail, self._buckets),
            config.global_batch_size,
            config.seed,
        )
        self._identity = _identity(sources, config)

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of `step`, in the global order."""
        whole = self._steps.at(step)
        start, stop = share(self.config.global_batch_size, self._rank, self._world_size)
        part = GlobalBatch(
            whole.bucket,
            whole.sources[start:stop],
            whole.positions[start:stop],
            whole.is_padding[start:stop],
        )
        arrays, metadata, others = self._read(part)
        return Batch(
            bucket=self._buckets[whole.bucket],
            arrays=arrays,
            metadata=metadata,
            is_padding=part.is_padding,
            start=start,
            stop=stop,
            global_size=self.config.global_batch_size,
            others=others,
        )

    def batches(self, first_step: int = 0, stop_step: int | None = None) -> ReadAhead[Batch]:
        """The batches of [first_step, stop_step), read ahead; None: without end.

        A step that cannot be read raises when its turn comes. Leave it by `close`, or as a context
        manager, unless it was read to its end.
        """
        last = stop_step if stop_step is not None else 2**62
        return ReadAhead(
            self.batch, range(first_step, last), self.config.threads, self.config.depth
        )

    def global_batch(self, step: int) -> tuple[str, np.ndarray, np.ndarray]:
        """(bucket, source [n], sample of that source [n]) of the whole batch of `step`."""
        whole = self._steps.at(step)
        return whole.bucket, whole.sources, self._items(whole)

    def state(self, step: int) -> dict[str, Any]:
        """What to keep to go on at `step`: some integers and short texts, the same on every rank.

        It does not depend on the number of ranks or threads.
        """
        return {"version": STATE_VERSION, "step": step, **self._identity}

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step that `state` stands at; UserError when it is of other data or settings."""
        expected = self.state(int(state.get("step", -1)))
        for name, value in expected.items():
            if state.get(name) != value or expected["step"] < 0:
                raise UserError(
                    f"the state of the data was saved with {name} {state.get(name)!r}, now it is "
                    f"{value!r}: the order of samples would change; start from step 0, or with "
                    "the data and settings of then"
                )
        return int(expected["step"])

    def _items(self, part: GlobalBatch) -> np.ndarray:
        sources = part.sources
        if (sources == sources[0]).all():
            return self._streams[int(sources[0]), part.bucket].at(part.positions)
        items = np.empty(len(sources), dtype=np.int64)
        for source in np.unique(sources):
            here = sources == source
            items[here] = self._streams[int(source), part.bucket].at(part.positions[here])
        return items

    def _read(
        self, part: GlobalBatch
    ) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]]:
        items = self._items(part)
        try:
            return self._read_items(part, items)
        except DamagedSample:
            if self.config.damaged == "raise":
                raise
        for place in range(len(items)):
            items[place] = self._sound(part, place, int(items[place]))
        return self._read_items(part, items)

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
        for name in (None, *self.config.token_sets):
            selection.gather(name)
        if self.config.metadata:
            selection.metadata()

    def _read_items(
        self, part: GlobalBatch, items: np.ndarray
    ) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]]:
        """Arrays, metadata and further arrays of these samples, each from its source."""
        names = (None, *self.config.token_sets)
        found: dict[str | None, np.ndarray] = {}
        metadata: list[dict[str, Any]] = [{}] * len(items)
        for source in np.unique(part.sources):
            samples = self._streams[int(source), part.bucket].samples
            places = np.flatnonzero(part.sources == source)
            selection = samples.select(items[places])
            for name in names:
                arrays = selection.gather(name)
                if len(places) == len(items):
                    found[name] = arrays
                    continue
                if name not in found:
                    found[name] = np.empty((len(items), *arrays.shape[1:]), dtype=arrays.dtype)
                if found[name].shape[1:] != arrays.shape[1:] or found[name].dtype != arrays.dtype:
                    raise ShardError(f"bucket {part.bucket}: sources of different shape or dtype")
                found[name][places] = arrays
            if self.config.metadata:
                for place, each in zip(places.tolist(), selection.metadata()):
                    metadata[place] = each
        primary = found.pop(None)
        return primary, metadata, {str(name): arrays for name, arrays in found.items()}


def share(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """The half-open part of `total` that a rank has; the first ranks have the remainder."""
    each, extra = divmod(total, world_size)
    start = rank * each + min(rank, extra)
    return start, start + each + (rank < extra)


def _by_bucket(
    sources: Sequence[Source], streams: Mapping[tuple[int, str], Stream]
) -> dict[str, list[tuple[int, float, Stream]]]:
    """The streams of each bucket, weighted so that every source has its share over all buckets."""
    found: dict[str, list[tuple[int, float, Stream]]] = {}
    for index, source in enumerate(sources):
        own = {bucket: streams[index, bucket] for bucket in source.samples}
        total = sum(stream.epoch_length for stream in own.values())
        for bucket, stream in own.items():
            weight = source.weight * stream.epoch_length / total
            found.setdefault(bucket, []).append((index, weight, stream))
    return found


def _tails(tail: Tail | Mapping[str, Tail], buckets: Mapping[str, Bucket]) -> dict[str, Tail]:
    if isinstance(tail, str):
        return dict.fromkeys(buckets, tail)
    unknown = set(tail) - set(buckets)
    if unknown:
        raise UserError(f"tail: no bucket {sorted(unknown)[0]}; there are {', '.join(buckets)}")
    return {name: tail.get(name, "wrap") for name in buckets}


def _identity(sources: Sequence[Source], config: LoaderConfig) -> dict[str, Any]:
    """What a state must agree on: all that the order of samples depends on."""
    content = [
        [source.weight, [[name, each.fingerprint] for name, each in source.samples.items()]]
        for source in sources
    ]
    settings = asdict(config)
    names = ("global_batch_size", "seed", "order", "window_shards", "tail", "views")
    return {
        "data": hashlib.sha256(canonical_json(content)).hexdigest()[:32],
        **{name: settings[name] for name in names},
    }
