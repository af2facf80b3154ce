"""Which samples a step sees: a pure function of the step, whatever ran before.

    step -> bucket      buckets take turns by their number of samples; one a step, on all ranks
    step -> slots       the next `global_batch_size` slots of that bucket
    slot -> source      sources take turns by weight
    slot -> position    the source's next position in its endless epochs

What becomes of the samples behind the last full batch of an epoch, its `tail`:

    wrap   the batch takes the next epoch's first samples as well: none is left out
    drop   they are left out; every epoch has another order, so it leaves out others
    pad    the last batch repeats samples, marked, so that a loss can give them the weight zero
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.shards.mixture import Turns
from pipeline.shards.stream import Stream
from tokenizer.settings import UserError

Tail = Literal["wrap", "drop", "pad"]
_BUCKET_BLOCK = 64  # steps in which buckets have their exact shares
_SOURCE_BLOCK = 10_000  # slots in which sources have theirs


@dataclass(frozen=True)
class GlobalBatch:
    """The slots of a step: of slot i, sources[i] gives the sample at positions[i]."""

    bucket: str
    sources: np.ndarray
    positions: np.ndarray
    is_padding: np.ndarray

    def part(self, start: int, stop: int) -> GlobalBatch:
        """The slots [start, stop)."""
        chosen = slice(start, stop)
        return GlobalBatch(
            self.bucket, self.sources[chosen], self.positions[chosen], self.is_padding[chosen]
        )


class Steps:
    """`streams` by bucket are (source, its weight in this bucket, stream); `tail` by bucket."""

    def __init__(
        self,
        streams: Mapping[str, Sequence[tuple[int, float, Stream]]],
        tails: Mapping[str, Tail],
        global_batch_size: int,
        seed: int,
    ) -> None:
        self._names = list(streams)
        self._size = global_batch_size
        self._offsets = np.arange(global_batch_size)
        self._no_padding = np.zeros(global_batch_size, dtype=bool)
        self._no_padding.flags.writeable = False
        self._tails = tails
        self._sources = {
            name: np.array([source for source, _, _ in each]) for name, each in streams.items()
        }
        self._epoch_length = {name: each[0][2].epoch_length for name, each in streams.items()}
        shares = [sum(weight for _, weight, _ in each) for each in streams.values()]
        self._bucket_turns = Turns(shares, _BUCKET_BLOCK, (seed, "bucket"))
        self._source_turns = {
            name: Turns([weight for _, weight, _ in each], _SOURCE_BLOCK, (seed, "source", name))
            for name, each in streams.items()
        }
        for name, each in streams.items():
            self._check_tail(name, each)

    def at(self, step: int) -> GlobalBatch:
        """The slots of `step`, in the order of the global batch."""
        bucket, turn = self._names[0], step
        if len(self._names) > 1:
            takers, turns = self._bucket_turns.at(np.array([step]))
            bucket, turn = self._names[int(takers[0])], int(turns[0])
        slots, is_padding = self._slots(bucket, turn)
        sources = self._sources[bucket]
        if len(sources) == 1:
            return GlobalBatch(bucket, sources.repeat(self._size), slots, is_padding)
        takers, positions = self._source_turns[bucket].at(slots)
        return GlobalBatch(bucket, sources[takers], positions, is_padding)

    def _slots(self, bucket: str, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots of a bucket's turn, and which of them only fill the batch up."""
        tail, length = self._tails[bucket], self._epoch_length[bucket]
        if tail == "wrap":
            return turn * self._size + self._offsets, self._no_padding
        batches = length // self._size if tail == "drop" else -(-length // self._size)
        epoch, number = divmod(turn, batches)
        places = number * self._size + self._offsets
        if tail == "drop" or (number + 1) * self._size <= length:
            return epoch * length + places, self._no_padding
        return epoch * length + places % length, places >= length

    def _check_tail(self, name: str, streams: Sequence[tuple[int, float, Stream]]) -> None:
        tail = self._tails[name]
        if tail != "wrap" and len(streams) > 1:
            raise UserError(
                f"tail of bucket {name} ({tail}) must be wrap: the sources of a mixture end their "
                "epochs at different steps"
            )
        if tail == "drop" and self._epoch_length[name] < self._size:
            raise UserError(
                f"bucket {name} has {self._epoch_length[name]} samples an epoch, fewer than a "
                f"global batch of {self._size}: tail drop would drop all; use wrap or pad"
            )
