"""Random access to the samples of one bucket: a batch is one gather, whatever order it is in.

    samples = open_dataset("runs/demo/data").samples(split="train")
    batch = samples.select([5, 17, 2])
    batch.gather()        # uint16 [3, num_tokens]
    batch.metadata()      # the JSON of each
    samples.gather([5, 17, 2]), samples.metadata([5, 17, 2])   # the same, one at a time

Rows are copied shard by shard, all rows of a shard at once; JSON is parsed once per batch. A
sample's bytes are compared with its crc32 the first time they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.shards.format import Bucket, ShardError, TokenSet
from pipeline.shards.overrides import Captions
from pipeline.shards.packing import unpack_codes
from pipeline.shards.shard import ArrayLayout, DamagedSample, Shard
from tokenizer.settings import UserError

_JSON = "json"


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
        self._starts = np.cumsum([0, *(shard.num_samples for shard in shards)])
        self._length = int(self._starts[-1]) if rows is None else len(rows)
        self._check = check
        self._companions: dict[str, Companion] = {}
        self._captions = captions
        self._checked: dict[str, np.ndarray] = {}
        self._layouts: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

    def __len__(self) -> int:
        return self._length

    @property
    def shard_counts(self) -> np.ndarray:
        """int64 [num_shards]: how many of these samples each shard holds."""
        if self._rows is None:
            return np.diff(self._starts)
        return np.diff(np.searchsorted(self._rows, self._starts))

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
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = numbers - self._starts[shard_of]
        order = np.argsort(shard_of, kind="stable")
        sorted_shards = shard_of[order]
        cuts = (np.flatnonzero(sorted_shards[1:] != sorted_shards[:-1]) + 1).tolist()
        bounds = [0, *cuts, len(wanted)] if len(wanted) else [0]
        groups = []
        for first, last in zip(bounds, bounds[1:]):
            places = order[first:last]
            groups.append((self.shards[sorted_shards[first]], places, rows[places]))
        return Selection(self, wanted, numbers, groups)

    def gather(
        self, indices: Sequence[int] | np.ndarray, token_set: str | None = None
    ) -> np.ndarray:
        """The arrays of these samples, stacked in the order asked for."""
        return self.select(indices).gather(token_set)

    def metadata(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The JSON of these samples."""
        return self.select(indices).metadata()

    def keys(self) -> np.ndarray:
        """uint64 [len, 2]: the digest of each sample's key."""
        return self._identities("key")

    def clips(self) -> np.ndarray:
        """uint64 [len]: the digest of what each sample shows; equal for views of one clip."""
        return self._identities("clip")

    def _identities(self, field: str) -> np.ndarray:
        values = np.concatenate([shard.sidecar.samples[field] for shard in self.shards])
        return values if self._rows is None else values[self._rows]

    def _fresh(self, member: str, numbers: np.ndarray) -> np.ndarray | None:
        """Which of these have not been compared with their crc32 yet; None when all have."""
        if not self._check:
            return None
        checked = self._checked.get(member)
        if checked is None:
            checked = np.zeros(int(self._starts[-1]), dtype=bool)
            self._checked[member] = checked
        fresh = ~checked[numbers]
        return fresh if fresh.any() else None

    def _layout(self, shard: Shard, token_set: TokenSet) -> ArrayLayout:
        """The shard's layout, which must be that of the shards seen before."""
        layout = shard.layout(token_set.member)
        expected = self._layouts.get(token_set.name)
        if expected is None:
            dtype = np.dtype(np.uint8 if token_set.dtype == "bits" else token_set.dtype)
            expected = self._layouts[token_set.name] = (layout.array.shape, dtype)
        shape, dtype = layout.array.shape, layout.array.dtype
        if (shape, dtype) != expected:
            raise ShardError(
                f"{shard.name}: {dtype} of shape {shape} in {token_set.name}, "
                f"not {expected[1]} of shape {expected[0]}"
            )
        return layout


@dataclass(frozen=True)
class Companion:
    """Token sets of another dataset: of sample i here, they are those of `partner[i]` there."""

    samples: Samples
    partner: np.ndarray


class Selection:
    """Some samples in an order, and where they lie."""

    def __init__(
        self,
        samples: Samples,
        indices: np.ndarray,
        numbers: np.ndarray,
        groups: list[tuple[Shard, np.ndarray, np.ndarray]],
    ) -> None:
        self._samples = samples
        self._indices = indices
        self._numbers = numbers
        self._groups = groups

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
        self._check(wanted.member, wanted)
        return unpacked(self._copied(wanted), wanted, samples.bucket)

    def metadata(self) -> list[dict[str, Any]]:
        """The JSON of each sample, parsed at once; {} where there is none."""
        samples = self._samples
        payloads: list[bytes] = [b"{}"] * len(self._numbers)
        self._check(_JSON, None)
        for shard, places, rows in self._groups:
            if _JSON in shard.sidecar.members:
                for place, payload in zip(places.tolist(), shard.slices(_JSON, rows)):
                    payloads[place] = payload or b"{}"
        found = _parsed(payloads)
        if found is None:
            raise self._bad_json()
        if samples._captions is not None:
            keys = list(map(tuple, self.keys().tolist()))
            samples._captions.apply(found, keys)
        return found

    def keys(self) -> np.ndarray:
        """uint64 [n, 2]: the digest of each sample's key."""
        found = np.empty((len(self._numbers), 2), dtype=np.uint64)
        for shard, places, rows in self._groups:
            found[places] = shard.sidecar.samples["key"][rows]
        return found

    def names(self) -> list[str]:
        """The key of each sample, which is read from its tar."""
        found = [""] * len(self._numbers)
        member = self._samples.token_set.member
        for shard, places, rows in self._groups:
            for place, row in zip(places.tolist(), rows.tolist()):
                found[place] = shard.key(member, row)
        return found

    def _copied(self, token_set: TokenSet) -> np.ndarray:
        samples = self._samples
        if not self._groups:
            layout = samples._layout(samples.shards[0], token_set)
            return np.empty((0, *layout.array.shape), dtype=layout.array.dtype)
        layout = samples._layout(self._groups[0][0], token_set)
        out = np.empty(len(self._numbers), dtype=f"V{layout.array.payload_bytes}")
        for shard, places, rows in self._groups:
            shard.gather_into(out, places, rows, samples._layout(shard, token_set))
        return out.view(layout.array.dtype).reshape(len(out), *layout.array.shape)

    def _check(self, member: str, token_set: TokenSet | None) -> None:
        """Compares samples that are read for the first time with their crc32."""
        samples = self._samples
        fresh = samples._fresh(member, self._numbers)
        if fresh is None:
            return
        for shard, places, rows in self._groups:
            header = samples._layout(shard, token_set).header if token_set else b""
            if token_set or member in shard.sidecar.members:
                shard.check(member, rows[fresh[places]], header)
        samples._checked[member][self._numbers] = True

    def _bad_json(self) -> DamagedSample:
        for shard, _, rows in self._groups:
            for row, payload in zip(rows.tolist(), shard.slices(_JSON, rows)):
                if _parsed([payload]) is None:
                    return shard.damaged(_JSON, row, "has no valid JSON object")
        shard, _, rows = self._groups[0]
        return shard.damaged(_JSON, int(rows[0]), "is read with others whose JSON is not whole")


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
    if len(found) != len(payloads) or not all(type(each) is dict for each in found):
        return None
    return found
