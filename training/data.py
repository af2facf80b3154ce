"""Batches from shards: which samples a step sees, as a pure function of the step.

    step -> bucket      buckets take turns by their number of samples; one per step on all ranks
    step -> positions   the next `global_batch_size` positions of that bucket's shuffled epochs
    rank -> its part    a contiguous share of the global batch

So the state of the data is the step alone: resume is exact, and any number of ranks sees the same
global batches. Every epoch is a new shuffle; a batch may span two epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards import Bucket, Dataset, Samples, ShardError, open_dataset
from pipeline.shards.order import shuffled
from tokenizer.settings import UserError
from training.config import DataConfig
from training.draws import numpy_generator

_TURNS = 64  # buckets share every 64 steps by their sizes


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch: `places` [start, stop) of `global_size`."""

    bucket: Bucket
    arrays: np.ndarray
    metadata: list[dict[str, Any]]
    start: int
    stop: int
    global_size: int


class Batches:
    """The batches of one rank."""

    def __init__(
        self,
        samples: dict[str, Samples],
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size < world_size:
            raise UserError(
                f"trainer.global_batch_size ({global_batch_size}) must be at least one clip "
                f"for each of {world_size} ranks"
            )
        self.samples = samples
        self._names = list(samples)
        self._size = global_batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._quota = _turns([len(samples[name]) for name in self._names])

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of `step`, in the global order."""
        bucket, indices = self.global_indices(step)
        start, stop = share(self._size, self._rank, self._world_size)
        samples = self.samples[bucket]
        mine = indices[start:stop]
        return Batch(
            bucket=samples.bucket,
            arrays=samples.gather(mine),
            metadata=samples.metadata(mine),
            start=start,
            stop=stop,
            global_size=self._size,
        )

    def global_indices(self, step: int) -> tuple[str, np.ndarray]:
        """The bucket of `step` and its sample indices, int64 [global_batch_size]."""
        name, turn = self._turn(step)
        length = len(self.samples[name])
        positions = np.arange(turn * self._size, (turn + 1) * self._size)
        indices = np.empty(self._size, dtype=np.int64)
        for epoch in np.unique(positions // length):
            here = positions // length == epoch
            indices[here] = shuffled(positions[here] % length, length, self._seed, int(epoch))
        return name, indices

    def _turn(self, step: int) -> tuple[str, int]:
        """The bucket of `step`, and how often it had its turn before."""
        if len(self._names) == 1:
            return self._names[0], step
        block, place = divmod(step, _TURNS)
        sequence = np.repeat(np.arange(len(self._names)), self._quota)
        numpy_generator(self._seed, "turns", block).shuffle(sequence)
        bucket = int(sequence[place])
        earlier = int((sequence[:place] == bucket).sum())
        return self._names[bucket], block * int(self._quota[bucket]) + earlier


def open_samples(config: DataConfig) -> tuple[Dataset, dict[str, Samples]]:
    """The dataset and its samples by bucket; UserError when the settings do not fit it."""
    if config.path is None:
        raise UserError("data.path is required: the dataset folder that `tessera build` made")
    try:
        dataset = open_dataset(Path(config.path))
        if config.buckets:
            chosen = {
                name: dataset.samples(split=config.split, bucket=name) for name in config.buckets
            }
        else:
            samples = dataset.samples(split=config.split)
            chosen = {samples.bucket.name: samples}
    except ShardError as error:
        raise UserError(str(error)) from None
    return dataset, chosen


def share(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """The half-open part of `total` that a rank has; the first ranks have the remainder."""
    each, extra = divmod(total, world_size)
    start = rank * each + min(rank, extra)
    return start, start + each + (rank < extra)


def _turns(sizes: list[int]) -> np.ndarray:
    """How many of `_TURNS` steps each bucket gets: by size, but at least one."""
    exact = np.array(sizes) / sum(sizes) * _TURNS
    quota = np.maximum(np.floor(exact).astype(np.int64), 1)
    while quota.sum() < _TURNS:
        quota[np.argmax(exact - quota)] += 1
    while quota.sum() > _TURNS:
        quota[np.argmax(quota)] -= 1
    return quota
