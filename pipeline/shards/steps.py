"""Which samples a step sees: a pure function of the step, whatever ran before.

    step -> bucket      buckets take turns by their number of batches; one a step, on all ranks
    step -> slots       the next slots of that bucket, as many as its batch has
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
from functools import cache
from typing import Literal

import numpy as np

from pipeline.shards.mixture import Turns
from pipeline.shards.stream import Stream
from tokenizer.settings import UserError

Tail = Literal["wrap", "drop", "pad"]
_BLOCK = 10_000  # steps in which buckets, and slots in which sources, have their exact shares


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
    """`streams` by bucket are (source, its weight in this bucket, stream); `tails`, `sizes` of a
    batch and `turns`, how often one comes beside the others', are by bucket."""

    def __init__(
        self,
        streams: Mapping[str, Sequence[tuple[int, float, Stream]]],
        tails: Mapping[str, Tail],
        sizes: Mapping[str, int],
        turns: Mapping[str, float],
        seed: int,
    ) -> None:
        self._names = list(streams)
        self._sizes = sizes
        self._tails = tails
        self._sources = {
            name: np.array([source for source, _, _ in each]) for name, each in streams.items()
        }
        self._epoch_length = {name: each[0][2].epoch_length for name, each in streams.items()}
        if len(streams) > _BLOCK:
            raise UserError(f"{len(streams):,} buckets are too many: at most {_BLOCK:,}")
        self._bucket_turns = Turns([turns[name] for name in streams], _BLOCK, (seed, "bucket"))
        self._source_turns = {
            name: Turns([weight for _, weight, _ in each], _BLOCK, (seed, "source", name))
            for name, each in streams.items()
        }
        for name, each in streams.items():
            self._check_tail(name, each)

    @property
    def shares(self) -> dict[str, float]:
        """How large a part of all batches those of each bucket are."""
        quotas = self._bucket_turns.quotas
        return dict(zip(self._names, (quotas / quotas.sum()).tolist()))

    def at(self, step: int) -> GlobalBatch:
        """The slots of `step`, in the order of the global batch."""
        bucket, turn = self._names[0], step
        if len(self._names) > 1:
            takers, turns = self._bucket_turns.at(np.array([step]))
            bucket, turn = self._names[int(takers[0])], int(turns[0])
        slots, is_padding = self._slots(bucket, turn)
        sources = self._sources[bucket]
        if len(sources) == 1:
            return GlobalBatch(bucket, sources.repeat(len(slots)), slots, is_padding)
        takers, positions = self._source_turns[bucket].at(slots)
        return GlobalBatch(bucket, sources[takers], positions, is_padding)

    def _slots(self, bucket: str, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots of a bucket's turn, and which of them only fill the batch up."""
        tail, length, size = self._tails[bucket], self._epoch_length[bucket], self._sizes[bucket]
        offsets, no_padding = _batch_of(size)
        if tail == "wrap":
            return turn * size + offsets, no_padding
        batches = length // size if tail == "drop" else -(-length // size)
        epoch, number = divmod(turn, batches)
        places = number * size + offsets
        if tail == "drop" or (number + 1) * size <= length:
            return epoch * length + places, no_padding
        return epoch * length + places % length, places >= length

    def _check_tail(self, name: str, streams: Sequence[tuple[int, float, Stream]]) -> None:
        tail = self._tails[name]
        if tail != "wrap" and len(streams) > 1:
            raise UserError(
                f"tail of bucket {name} ({tail}) must be wrap: the sources of a mixture end their "
                "epochs at different steps"
            )
        if tail == "drop" and self._epoch_length[name] < self._sizes[name]:
            raise UserError(
                f"bucket {name} has {self._epoch_length[name]} samples an epoch, fewer than a "
                f"global batch of {self._sizes[name]}: tail drop would drop all; use wrap or pad"
            )


@cache
def _batch_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of a batch, and that none of them is padding."""
    no_padding = np.zeros(size, dtype=bool)
    no_padding.flags.writeable = False
    return np.arange(size), no_padding
