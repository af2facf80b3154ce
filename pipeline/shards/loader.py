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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from pipeline.shards.batch import Batch, BatchReader
from pipeline.shards.format import Bucket, canonical_json
from pipeline.shards.order import Order, OrderKind
from pipeline.shards.prefetch import ReadAhead
from pipeline.shards.samples import Samples
from pipeline.shards.shard import DamagedSample
from pipeline.shards.steps import GlobalBatch, Steps, Tail
from pipeline.shards.stream import Stream
from pipeline.shards.windows import WindowFetcher
from tokenizer.settings import UserError

STATE_VERSION = 2
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What decides which samples a step sees, and how they are read.

    A batch has `global_batch_size` samples, or as many as `batch_sizes` says of its bucket.
    `bucket_weights` say how often a sample of a bucket comes beside others (1 where they do not).
    `tail` is a policy (see `steps`) for all buckets or one by name; `views` "one" shows each clip
    once an epoch; `damaged` "skip" puts the next sound sample of the order in a damaged one's
    place. `token_sets` are read beside the primary one. `threads` read `depth` batches ahead.
    """

    global_batch_size: int
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    bucket_weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    order: OrderKind = "global"
    window_shards: int = 8
    tail: Tail | Mapping[str, Tail] = "wrap"
    views: Literal["one", "all"] = "one"
    damaged: Literal["raise", "skip"] = "raise"
    token_sets: tuple[str, ...] = ()
    metadata: bool = True
    threads: int = 1
    depth: int = 2

    def __post_init__(self) -> None:
        tails = [self.tail] if isinstance(self.tail, str) else list(self.tail.values())
        for name, value, allowed in (
            ("order", self.order, get_args(OrderKind)),
            ("views", self.views, ("one", "all")),
            ("damaged", self.damaged, ("raise", "skip")),
            *(("tail", tail, get_args(Tail)) for tail in tails),
        ):
            if value not in allowed:
                raise UserError(f"{name} ({value!r}) must be one of {', '.join(allowed)}")
        for name, number, least in (
            ("global_batch_size", self.global_batch_size, 1),
            *((f"batch_sizes[{name}]", size, 1) for name, size in self.batch_sizes.items()),
            ("window_shards", self.window_shards, 1),
            ("threads", self.threads, 0),
            ("depth", self.depth, 1),
        ):
            if number < least:
                raise UserError(f"{name} ({number}) must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples by bucket, and their share in a mixture."""

    samples: Mapping[str, Samples]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """A bucket as a loader shows it; `share` is that of its batches among all."""

    bucket: Bucket
    num_samples: int
    batch_size: int
    share: float


class Loader:
    """The batches of one rank; UserError when settings and samples do not fit together."""

    def __init__(
        self,
        sources: Mapping[str, Samples] | Sequence[Source],
        config: LoaderConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"rank ({rank}) must be in [0, {world_size}), the number of ranks")
        self.config = config
        self._rank, self._world_size = rank, world_size
        if isinstance(sources, Mapping):
            sources = [Source(samples=sources)]
        if not sources or not all(each.samples and each.weight > 0 for each in sources):
            raise UserError("a loader needs sources with samples, each with a positive weight")
        order = Order(kind=config.order, seed=config.seed, window_shards=config.window_shards)
        self._streams = {
            (index, bucket): Stream(samples, order, config.views == "one")
            for index, source in enumerate(sources)
            for bucket, samples in source.samples.items()
        }
        self._reader = BatchReader(
            self._streams, config.token_sets, config.metadata, config.damaged == "skip"
        )
        self._fetchers = {
            key: WindowFetcher(stream)
            for key, stream in self._streams.items()
            if config.order == "window" and any(each.is_remote for each in stream.samples.shards)
        }
        self._buckets = {bucket: each.samples.bucket for (_, bucket), each in self._streams.items()}
        self._sizes = _of_buckets(
            "batch_sizes", config.batch_sizes, self._buckets, config.global_batch_size
        )
        for name, size in self._sizes.items():
            if size < world_size:
                raise UserError(
                    f"the global batch of bucket {name} ({size}) must be at least one sample for "
                    f"each of {world_size} ranks"
                )
        by_bucket = _by_bucket(sources, self._streams)
        weights = _of_buckets("bucket_weights", config.bucket_weights, self._buckets, 1.0)
        turns = {
            name: sum(weight for _, weight, _ in each)
            * (weights[name] * config.global_batch_size / self._sizes[name])
            for name, each in by_bucket.items()
        }
        tails = _tails(config.tail, self._buckets)
        self._steps = Steps(by_bucket, tails, self._sizes, turns, config.seed)
        self._identity = _identity(sources, config)

    @property
    def damaged(self) -> Mapping[tuple[str, int], DamagedSample]:
        """The damaged samples that were skipped, by shard and row."""
        return self._reader.damaged

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of `step`, in the global order."""
        whole = self._steps.at(step)
        if self._fetchers:
            self._fetch_ahead(whole)
        start, stop = share(len(whole.positions), self._rank, self._world_size)
        part = whole if self._world_size == 1 else whole.part(start, stop)
        arrays, metadata, others = self._reader.read(part)
        return Batch(
            bucket=self._buckets[whole.bucket],
            arrays=arrays,
            metadata=metadata,
            is_padding=part.is_padding,
            start=start,
            stop=stop,
            global_size=len(whole.positions),
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
        return whole.bucket, whole.sources, self._reader.items(whole)

    def plan(self) -> list[BucketPlan]:
        """What becomes of each bucket, those first whose batches come most often."""
        plans = [
            BucketPlan(
                bucket=self._buckets[name],
                num_samples=sum(
                    stream.epoch_length
                    for (_, bucket), stream in self._streams.items()
                    if bucket == name
                ),
                batch_size=self._sizes[name],
                share=share,
            )
            for name, share in self._steps.shares.items()
        ]
        return sorted(plans, key=lambda each: -each.share)

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

    def close(self) -> None:
        """Stops fetching remote shards ahead."""
        for fetcher in self._fetchers.values():
            fetcher.close()

    def _fetch_ahead(self, whole: GlobalBatch) -> None:
        for source in np.unique(whole.sources).tolist():
            fetcher = self._fetchers.get((source, whole.bucket))
            if fetcher is not None:
                fetcher.at(int(whole.positions[whole.sources == source].min()))


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


def _of_buckets(
    name: str, given: Mapping[str, Value], buckets: Mapping[str, Bucket], default: Value
) -> dict[str, Value]:
    """A value for each bucket; UserError for one that there is not."""
    unknown = sorted(set(given) - set(buckets))
    if unknown:
        raise UserError(f"{name}: no bucket {unknown[0]}; there are {', '.join(buckets)}")
    return {bucket: given.get(bucket, default) for bucket in buckets}


def _tails(tail: Tail | Mapping[str, Tail], buckets: Mapping[str, Bucket]) -> dict[str, Tail]:
    if isinstance(tail, str):
        return dict.fromkeys(buckets, tail)
    return _of_buckets("tail", tail, buckets, "wrap")


def _identity(sources: Sequence[Source], config: LoaderConfig) -> dict[str, Any]:
    """What a state must agree on: all that the order of samples depends on."""
    content = [
        [source.weight, [[name, each.fingerprint] for name, each in source.samples.items()]]
        for source in sources
    ]
    settings = asdict(config)
    names = ["global_batch_size", "seed", "order", "tail", "views"]
    names += ["window_shards"] if config.order == "window" else []
    names += [name for name in ("batch_sizes", "bucket_weights") if settings[name]]
    return {
        "data": hashlib.sha256(canonical_json(content)).hexdigest()[:32],
        **{name: settings[name] for name in names},
    }
