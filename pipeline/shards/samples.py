"""Random access to the samples of one bucket: a batch is one gather, whatever order it is in.

    samples = open_dataset("runs/demo/data").samples(split="train")
    batch = samples.select([5, 17, 2])
    batch.gather()        # uint16 [3, num_tokens]
    batch.metadata()      # the JSON of each
    samples.gather([5, 17, 2]), samples.metadata([5, 17, 2])   # the same, one at a time

The arrays of a batch are copied at once, whatever shards they lie in (`memory`), and its JSON is
parsed at once. A sample's bytes are compared with its crc32 the first time they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.shards.checksum import crc32
from pipeline.shards.format import Bucket, ShardError, TokenSet
from pipeline.shards.members import MemberTable
from pipeline.shards.memory import read_items
from pipeline.shards.overrides import Captions
from pipeline.shards.packing import unpack_codes
from pipeline.shards.shard import DamagedSample, Shard, ShardMap
from tokenizer.settings import UserError

_JSON = "json"
_SCANNED_TOGETHER = 4096


class Samples:
    """The samples of one bucket in shard order, or those of them that `rows` names.

    `rows` (int64, ascending) counts through all samples of `shards`. `token_sets` lists the primary
    one first. `check` compares each sample with its crc32 when it is first read; `captions` replace
    those of the shards.
    """

    def __init__(
        self,
        bucket: Bucket,
        token_sets: Mapping[str, TokenSet],
        shards: Sequence[Shard],
        *,
        rows: np.ndarray | None = None,
        check: bool = True,
        captions: Captions | None = None,
        fingerprint: str = "",
    ) -> None:
        if not token_sets:
            raise ShardError(f"{shards[0].name}: none of the token sets is a member of it")
        self.bucket = bucket
        self.token_set = next(iter(token_sets.values()))
        self.token_sets = dict(token_sets)
        self.fingerprint = fingerprint
        self.shards = list(shards)
        self._rows = rows
        self._bounds = np.cumsum([0, *(shard.num_samples for shard in shards)])
        self._length = int(self._bounds[-1]) if rows is None else len(rows)
        self._check = check
        self._captions = captions
        self._companions: dict[str, Companion] = {}
        self._tables: dict[str, MemberTable] = {}

    def __len__(self) -> int:
        return self._length

    @property
    def shard_counts(self) -> np.ndarray:
        """int64 [num_shards]: how many of these samples each shard holds."""
        if self._rows is None:
            return np.diff(self._bounds)
        return np.diff(np.searchsorted(self._rows, self._bounds))

    def add_companion(self, token_set: str, companion: Companion) -> None:
        """From now on `token_set` is read from another dataset."""
        if token_set in self.token_sets or token_set in self._companions:
            raise UserError(f"two datasets both have a token set {token_set!r}")
        self._companions[token_set] = companion

    def select(self, indices: Sequence[int] | np.ndarray) -> Selection:
        """These samples, in this order; IndexError outside of [0, len)."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and int(wanted.view(np.uint64).max()) >= self._length:
            raise IndexError(f"sample indices must lie in [0, {self._length})")
        numbers = wanted if self._rows is None else self._rows[wanted]
        shard_of = np.searchsorted(self._bounds, numbers, side="right") - 1
        return Selection(self, wanted, shard_of, numbers - self._bounds[shard_of])

    def gather(
        self, indices: Sequence[int] | np.ndarray, token_set: str | None = None
    ) -> np.ndarray:
        """The arrays of these samples, stacked in the order asked for."""
        return self.select(indices).gather(token_set)

    def metadata(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The JSON of these samples."""
        return self.select(indices).metadata()

    def each_metadata(self, skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
        """The JSON of all samples in their order, a few thousand in memory at a time.

        DamagedSample at the first that is damaged, or without those when they are to be skipped.
        """
        for start in range(0, self._length, _SCANNED_TOGETHER):
            wanted = np.arange(start, min(start + _SCANNED_TOGETHER, self._length))
            yield from self._sound_metadata(wanted) if skip_damaged else self.metadata(wanted)

    def _sound_metadata(self, indices: np.ndarray) -> list[dict[str, Any]]:
        try:
            return self.metadata(indices)
        except DamagedSample:
            if len(indices) == 1:
                return []
            halves = np.array_split(indices, 2)
            return [each for half in halves for each in self._sound_metadata(half)]

    def keys(self) -> np.ndarray:
        """uint64 [len, 2]: the digest of each sample's key."""
        return self._identities("key")

    def clips(self) -> np.ndarray:
        """uint64 [len]: the digest of what each sample shows; equal for views of one clip."""
        return self._identities("clip")

    def _identities(self, field: str) -> np.ndarray:
        values = np.concatenate([shard.sidecar.samples[field] for shard in self.shards])
        return values if self._rows is None else values[self._rows]

    def _table(self, member: str, token_set: TokenSet | None) -> MemberTable:
        """Where the payloads of a member lie, known for no shard at first."""
        table = self._tables.get(member)
        if table is None:
            dtype = None
            if token_set is not None:
                dtype = np.dtype(np.uint8 if token_set.dtype == "bits" else token_set.dtype)
            table = MemberTable(self.shards, member, dtype, self._check)
            table = self._tables.setdefault(member, table)
        return table


@dataclass(frozen=True)
class Companion:
    """Token sets of another dataset: of sample i here, they are those of `partner[i]` there."""

    samples: Samples
    partner: np.ndarray


class Selection:
    """Some samples in an order: sample i is row `rows[i]` of shard `shard_of[i]`."""

    def __init__(
        self, samples: Samples, indices: np.ndarray, shard_of: np.ndarray, rows: np.ndarray
    ) -> None:
        self._samples = samples
        self._indices = indices
        self._shard_of = shard_of
        self._rows = rows
        self._maps: list[ShardMap] | None = None

    def gather(self, token_set: str | None = None) -> np.ndarray:
        """The arrays of `token_set` (default: the primary), stacked.

        Packed codes come unpacked. Raises DamagedSample, and ShardError when arrays differ in
        shape.
        """
        samples = self._samples
        if token_set in samples._companions:
            companion = samples._companions[token_set]
            return companion.samples.gather(companion.partner[self._indices], token_set)
        wanted = samples.token_sets.get(token_set) if token_set else samples.token_set
        if wanted is None:
            known = ", ".join([*samples.token_sets, *samples._companions])
            raise UserError(f"no token set {token_set!r}; there are {known}")
        return unpacked(self._copied(wanted), wanted, samples.bucket)

    def metadata(self) -> list[dict[str, Any]]:
        """The JSON of each sample, parsed at once; {} where there is none."""
        payloads = self._payloads()
        found = _parsed(payloads)
        if found is None:
            raise self._bad_json(payloads)
        if self._samples._captions is not None:
            self._samples._captions.apply(found, list(map(tuple, self.keys().tolist())))
        return found

    def keys(self) -> np.ndarray:
        """uint64 [n, 2]: the digest of each sample's key."""
        found = np.empty((len(self._rows), 2), dtype=np.uint64)
        for shard in np.unique(self._shard_of).tolist():
            here = self._shard_of == shard
            found[here] = self._samples.shards[shard].sidecar.samples["key"][self._rows[here]]
        return found

    def names(self) -> list[str]:
        """The key of each sample, which is read from its tar."""
        shards, member = self._samples.shards, self._samples.token_set.member
        places = zip(self._shard_of.tolist(), self._rows.tolist())
        return [shards[shard].key(member, row) for shard, row in places]

    def _opened(self) -> list[ShardMap]:
        """The map of each sample's shard; they stay open as long as this selection."""
        if self._maps is None:
            numbers, shards = self._shard_of.tolist(), self._samples.shards
            opened = {number: shards[number].opened() for number in set(numbers)}
            self._maps = [opened[number] for number in numbers]
        return self._maps

    def _copied(self, token_set: TokenSet) -> np.ndarray:
        table = self._samples._table(token_set.member, token_set)
        rows = table.rows(self._shard_of, self._rows)
        if table.array is None:
            table.prepare(0)  # of no samples: the shape of any
        assert table.array is not None
        array = table.array
        bases = np.array([each.address for each in self._opened()], dtype=np.int64)
        out = read_items(bases + table.starts[rows], array.payload_bytes)
        fresh = table.fresh(rows)
        if len(fresh):
            self._compare_arrays(table, rows, fresh, out)
        return out.view(array.dtype).reshape(len(out), *array.shape)

    def _compare_arrays(
        self, table: MemberTable, rows: np.ndarray, fresh: np.ndarray, out: np.ndarray
    ) -> None:
        """Checks the copied payloads: as if behind the header that they must have."""
        headers = table.header_sums(self._shard_of[fresh].tolist())
        copied, size = out.view(np.uint8).data, out.itemsize
        sums = [
            crc32(copied[place * size : (place + 1) * size], header)
            for place, header in zip(fresh.tolist(), headers)
        ]
        table.compare(rows[fresh], sums)

    def _payloads(self) -> list[bytes]:
        """The JSON texts."""
        table = self._samples._table(_JSON, None)
        rows = table.rows(self._shard_of, self._rows)
        places = zip(self._opened(), table.starts[rows].tolist(), table.ends[rows].tolist())
        payloads = [opened.data[start:end] for opened, start, end in places]
        fresh = table.fresh(rows)
        if len(fresh):
            table.compare(rows[fresh], [crc32(payloads[i]) for i in fresh.tolist()])
        return payloads if all(payloads) else [each or b"{}" for each in payloads]

    def _bad_json(self, payloads: list[bytes]) -> DamagedSample:
        """The error about the first text that is no object, or that only looks like one."""
        bad = [place for place, each in enumerate(payloads) if _parsed([each]) is None]
        place = bad[0] if bad else 0
        shard = self._samples.shards[int(self._shard_of[place])]
        return shard.damaged(_JSON, int(self._rows[place]), "has no valid JSON object")


def unpacked(arrays: np.ndarray, token_set: TokenSet, bucket: Bucket) -> np.ndarray:
    """Codes of dtype "bits" as uint16 or uint32 [n, num_tokens]; other arrays as they are."""
    if token_set.dtype != "bits":
        return arrays
    schedule = bucket.schedules.get(token_set.name, bucket.schedule)
    if schedule is None or token_set.bits_per_code is None:
        raise ShardError(f"{token_set.name}: packed codes need a schedule and a codebook size")
    try:
        return unpack_codes(arrays, token_set.bits_per_code, schedule.num_tokens)
    except ValueError as error:
        raise ShardError(f"{token_set.name}: {error}") from None


def _parsed(payloads: list[bytes]) -> list[dict[str, Any]] | None:
    """The objects in these texts, by one call of the parser; None unless each is one object."""
    try:
        found = json.loads(b"[" + b",".join(payloads) + b"]")
    except (ValueError, RecursionError):
        return None
    if len(found) != len(payloads) or not set(map(type, found)) <= {dict}:
        return None
    return found
