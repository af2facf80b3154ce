"""Reads a dataset of shards by memory map: a batch is one gather, whatever order it is in.

    dataset = open_dataset("runs/demo/data")
    samples = dataset.samples(split="train")
    codes = samples.gather([5, 17, 2])      # uint16 [3, num_tokens]
    captions = [each["caption"] for each in samples.metadata([5, 17, 2])]

A sample's bytes are checked against its crc32 the first time they are read.
"""

from __future__ import annotations

import io
import json
import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.format import (
    INDEX_FILE,
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    parse_declaration,
)
from pipeline.shards.sidecar import Sidecar, parse_sidecar
from tokenizer.settings import UserError

# Below this many bytes a sample, one fancy index beats a Python loop of slices.
_GATHER_BYTES = 8192


def open_dataset(directory: str | Path) -> Dataset:
    """The finished dataset in `directory`; UserError if there is none, ShardError if damaged."""
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: no such dataset folder")
    if not (root / SUCCESS_FILE).exists() or not (root / SHARDS_FILE).exists():
        raise UserError(f"{root}: not a finished dataset; run `tessera build` to its end first")
    text = (root / SHARDS_FILE).read_text(encoding="utf-8")
    fingerprint, token_sets, buckets, shards = parse_declaration(text, str(root / SHARDS_FILE))
    tokenizer_dir = root / "tokenizer"
    return Dataset(
        root=root,
        fingerprint=fingerprint,
        token_sets={each.name: each for each in token_sets},
        buckets={each.name: each for each in buckets},
        shards=shards,
        tokenizer_dir=tokenizer_dir if tokenizer_dir.is_dir() else None,
    )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A finished dataset; `token_sets` lists the primary set first."""

    root: Path
    fingerprint: str
    token_sets: dict[str, TokenSet]
    buckets: dict[str, Bucket]
    shards: list[ShardEntry]
    tokenizer_dir: Path | None

    @property
    def primary(self) -> TokenSet:
        return next(iter(self.token_sets.values()))

    def samples(self, split: str | None = None, bucket: str | None = None) -> Samples:
        """The samples of a split (None: all) in one bucket.

        `bucket` may be None when the split has exactly one, or when one has more frames than the
        others: then that one is meant.
        """
        shards = [each for each in self.shards if split is None or each.split == split]
        if bucket is None:
            names = sorted(
                {each.bucket for each in shards}, key=lambda name: self.buckets[name].num_frames
            )
            if not names:
                raise UserError(f"{self.root}: no samples in split {split!r}")
            longest = [
                name
                for name in names
                if self.buckets[name].num_frames == self.buckets[names[-1]].num_frames
            ]
            if len(longest) > 1:
                raise UserError(f"{self.root}: name a bucket: one of {', '.join(longest)}")
            bucket = longest[0]
        elif bucket not in self.buckets:
            known = ", ".join(self.buckets)
            raise UserError(f"{self.root}: no bucket {bucket!r}; there are {known}")
        chosen = [each for each in shards if each.bucket == bucket]
        if not chosen:
            raise UserError(f"{self.root}: split {split!r} has no samples in bucket {bucket}")
        return Samples(self.root, self.buckets[bucket], self.primary, chosen)


class Samples:
    """Random access to the samples of one bucket, in shard order."""

    def __init__(
        self, root: Path, bucket: Bucket, token_set: TokenSet, shards: Sequence[ShardEntry]
    ) -> None:
        self.bucket = bucket
        self.token_set = token_set
        index = (root / INDEX_FILE).read_bytes()
        self._shards = [_MappedShard(root, entry, index, token_set) for entry in shards]
        self._starts = np.cumsum([0, *(entry.num_samples for entry in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The primary arrays of these samples, stacked in the order asked for."""
        wanted = self._checked(indices)
        first = self._shards[0]
        result = np.empty((len(wanted), *first.shape), dtype=first.dtype)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            self._shards[number].gather_into(result, places, wanted[places] - self._starts[number])
        return result

    def metadata(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The JSON of these samples."""
        wanted = self._checked(indices)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        return [
            self._shards[number].metadata(int(index - self._starts[number]))
            for number, index in zip(shard_of, wanted)
        ]

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"sample indices must lie in [0, {len(self)})")
        return wanted


class _MappedShard:
    """One shard under a memory map; arrays of equal shape at the places its sidecar names."""

    def __init__(self, root: Path, entry: ShardEntry, index: bytes, token_set: TokenSet) -> None:
        self._path = root / entry.path
        blob = memoryview(index)[entry.index_offset : entry.index_offset + entry.index_bytes]
        sidecar = parse_sidecar(blob, f"{root / INDEX_FILE} ({entry.path})")
        self._check(sidecar, entry, token_set)
        self._array_places = sidecar.places[:, sidecar.members.index(token_set.member)]
        self._json_places = sidecar.places[:, sidecar.members.index("json")]
        with open(self._path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.shape, self.dtype, self._header_bytes = self._npy_header(token_set)
        self._checked_samples = np.zeros(entry.num_samples, dtype=bool)

    def _check(self, sidecar: Sidecar, entry: ShardEntry, token_set: TokenSet) -> None:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            raise ShardError(f"{self._path}: missing shard") from None
        if size != sidecar.tar_bytes or size != entry.size_bytes:
            raise ShardError(f"{self._path}: {size} bytes, the index says {sidecar.tar_bytes}")
        if len(sidecar.places) != entry.num_samples or not entry.num_samples:
            raise ShardError(f"{self._path}: {len(sidecar.places)} samples in the index")
        if token_set.member not in sidecar.members or "json" not in sidecar.members:
            raise ShardError(f"{self._path}: no member {token_set.member!r} in the index")
        lengths = sidecar.places[:, sidecar.members.index(token_set.member)]["length"]
        if lengths.min() != lengths.max():
            raise ShardError(f"{self._path}: arrays of different sizes in one bucket")

    def _npy_header(self, token_set: TokenSet) -> tuple[tuple[int, ...], np.dtype, int]:
        offset, length = (int(self._array_places[0][name]) for name in ("offset", "length"))
        stream = io.BytesIO(self._map[offset : offset + min(length, 4096)])
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except ValueError as error:
            raise ShardError(f"{self._path} at byte {offset}: not an array ({error})") from None
        header_bytes = stream.tell()
        size = int(np.prod(shape)) * dtype.itemsize
        if version != (1, 0) or fortran or dtype != np.dtype(token_set.dtype):
            raise ShardError(f"{self._path} at byte {offset}: {dtype} is not {token_set.dtype}")
        if header_bytes + size != length:
            raise ShardError(f"{self._path} at byte {offset}: {length} bytes for shape {shape}")
        return shape, dtype, header_bytes

    def gather_into(self, result: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        fresh = rows[~self._checked_samples[rows]]
        for row in fresh:
            self._payload(self._array_places, int(row))
        self._checked_samples[fresh] = True
        starts = self._array_places["offset"][rows].astype(np.int64) + self._header_bytes
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        if size <= _GATHER_BYTES:
            raw = self._bytes[starts[:, None] + np.arange(size)]
            result[places] = raw.view(self.dtype).reshape(len(rows), *self.shape)
        else:
            for place, start in zip(places, starts):
                raw = self._bytes[start : start + size]
                result[place] = raw.view(self.dtype).reshape(self.shape)

    def metadata(self, row: int) -> dict[str, Any]:
        return json.loads(self._payload(self._json_places, row))

    def _payload(self, places: np.ndarray, row: int) -> bytes:
        offset, length, crc32 = (int(value) for value in places[row])
        payload = self._map[offset : offset + length]
        if zlib.crc32(payload) != crc32:
            raise ShardError(f"{self._path}: sample {row} at byte {offset} is damaged (crc32)")
        return payload
