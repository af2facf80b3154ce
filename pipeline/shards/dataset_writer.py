"""A dataset without a build: samples that were made elsewhere become a finished dataset folder.

    codes = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=4096)
    clip = Bucket(name="t9_h64_w64", num_frames=9, height=64, width=64, schedule=schedule)
    with DatasetWriter("my_tokens", [codes], [clip]) as writer:
        writer.write("0001", {"codes": array}, {"caption": "a cat"})
        writer.write("0002", {"codes": other}, {"caption": "a dog"}, split="val")
    samples = open_dataset("my_tokens").samples("train")

For tests, benchmarks and tokens made by other programs. It leaves shards, sidecars, `index.bin`,
`shards.json` and, last, `_SUCCESS`; when it is interrupted there is no dataset. The same samples
give the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from pipeline.shards.format import (
    INDEX_FILE,
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    dump_declaration,
    parse_declaration,
)
from pipeline.shards.hashing import HashingStream
from pipeline.shards.packing import pack_codes
from pipeline.shards.writer import ShardWriter
from tokenizer.scales import Schedule
from tokenizer.settings import UserError

_SPLIT = re.compile(r"[a-z0-9_]{1,40}")


class DatasetWriter:
    """Writes `directory`; the first token set is the primary one. A context manager.

    Shards are named `parts/<split>-<bucket>-<number>.tar`. UserError when the folder already holds
    a dataset.
    """

    def __init__(
        self,
        directory: str | Path,
        token_sets: Sequence[TokenSet],
        buckets: Sequence[Bucket],
        *,
        samples_per_shard: int = 1000,
    ) -> None:
        self.root = Path(directory)
        self._token_sets = list(token_sets)
        self._buckets = {bucket.name: bucket for bucket in buckets}
        self._samples_per_shard = samples_per_shard
        self._open: dict[tuple[str, str], _OpenShard] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._done: list[tuple[ShardEntry, bytes]] = []
        if not self._token_sets or not self._buckets or samples_per_shard < 1:
            raise ValueError("a dataset needs token sets, buckets and at least 1 sample a shard")
        try:
            parse_declaration(dump_declaration(self._token_sets, buckets, ()), "this dataset")
        except ShardError as error:
            raise ValueError(str(error)) from None
        for token_set in self._token_sets:
            for bucket in buckets:
                if token_set.dtype == "bits" and self._schedule(token_set, bucket) is None:
                    raise ValueError(f"{token_set.name}: packed codes need a schedule")
        for name in ("parts", SHARDS_FILE, SUCCESS_FILE):
            if (self.root / name).exists():
                raise UserError(f"{self.root}: holds a dataset already ({name}); name a new folder")
        (self.root / "parts").mkdir(parents=True)

    def write(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any],
        *,
        split: str = "train",
        bucket: str | None = None,
        clip: str | None = None,
        code_key: str | None = None,
    ) -> None:
        """Appends a sample: `arrays` by the names of the token sets, `metadata` its JSON.

        Codes of dtype "bits" are given as plain integers [n]. `bucket` may be left out when there
        is one; `clip` and `code_key` as for `ShardWriter`. ValueError when an array is not what
        was declared, or not of the shape of its bucket.
        """
        if bucket is None and len(self._buckets) == 1:
            bucket = next(iter(self._buckets))
        if bucket not in self._buckets:
            raise ValueError(f"bucket {bucket!r} is not one of {', '.join(self._buckets)}")
        if not _SPLIT.fullmatch(split):
            raise ValueError(f"split {split!r} must be 1 to 40 small letters, digits or '_'")
        if set(arrays) != {each.name for each in self._token_sets}:
            names = [each.name for each in self._token_sets]
            raise ValueError(f"sample {key} has {sorted(arrays)}, not {sorted(names)}")
        members = {
            each.member: self._checked(each, arrays[each.name], bucket, key)
            for each in self._token_sets
        }
        shard = self._open.get((split, bucket)) or self._begin(split, bucket)
        shard.writer.write(key, members, metadata, clip=clip, code_key=code_key)
        if shard.writer.num_samples == self._samples_per_shard:
            self._finish(split, bucket)

    def close(self) -> None:
        """Ends the open shards and writes the lists; `_SUCCESS` comes last."""
        for split, bucket in sorted(self._open):
            self._finish(split, bucket)
        if not self._done:
            raise ValueError(f"{self.root}: no samples were written")
        self._done.sort(key=lambda each: each[0].path)
        index, entries = bytearray(), []
        for entry, sidecar in self._done:
            entries.append(replace(entry, index_offset=len(index)))
            index += sidecar
        used = {entry.bucket for entry in entries}
        buckets = [each for each in self._buckets.values() if each.name in used]
        declaration = dump_declaration(self._token_sets, buckets, entries)
        _write_file(self.root / INDEX_FILE, bytes(index))
        _write_file(self.root / SHARDS_FILE, declaration.encode())
        _write_file(self.root / SUCCESS_FILE, b"")

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        for shard in self._open.values():
            shard.file.close()

    def _checked(self, token_set: TokenSet, array: np.ndarray, bucket: str, key: str) -> np.ndarray:
        """The array as it is stored."""
        name = f"{token_set.name} of sample {key}"
        size = token_set.codebook_size
        schedule = self._schedule(token_set, self._buckets[bucket])
        if token_set.kind == "codes":
            if array.ndim != 1:
                raise ValueError(f"{name}: codes are stored flat, not as {array.shape}")
            if size is not None and array.size and int(array.max()) >= size:
                raise ValueError(f"{name}: code {int(array.max())} is not below {size}")
            if schedule is not None and len(array) != schedule.num_tokens:
                raise ValueError(f"{name}: {len(array)} codes, not {schedule.num_tokens}")
        if token_set.dtype == "bits" and token_set.bits_per_code is not None:
            array = pack_codes(array, token_set.bits_per_code)
        elif array.dtype != np.dtype(token_set.dtype):
            raise ValueError(f"{name}: {array.dtype} is not {token_set.dtype}")
        shape = self._shapes.setdefault((bucket, token_set.name), array.shape)
        if array.shape != shape:
            raise ValueError(f"{name}: {array.shape} in a bucket of {shape}")
        return array

    def _schedule(self, token_set: TokenSet, bucket: Bucket) -> Schedule | None:
        primary = token_set is self._token_sets[0]
        return bucket.schedule if primary else bucket.schedules.get(token_set.name)

    def _begin(self, split: str, bucket: str) -> _OpenShard:
        number = self._numbers.get((split, bucket), 0)
        self._numbers[split, bucket] = number + 1
        shard = _OpenShard(
            self.root,
            f"parts/{split}-{bucket}-{number:06d}.tar",
            tuple(each.member for each in self._token_sets),
        )
        self._open[split, bucket] = shard
        return shard

    def _finish(self, split: str, bucket: str) -> None:
        shard = self._open.pop((split, bucket))
        sidecar = shard.writer.close()
        _sync(shard.file)
        shard.file.close()
        _write_file((self.root / shard.path).with_suffix(".idx"), sidecar)
        entry = ShardEntry(
            path=shard.path,
            sha256=shard.stream.sha256(),
            size_bytes=shard.stream.size_bytes,
            num_samples=shard.writer.num_samples,
            bucket=bucket,
            split=split,
            index_offset=0,
            index_bytes=len(sidecar),
        )
        self._done.append((entry, sidecar))


class _OpenShard:
    """A tar that is being written."""

    def __init__(self, root: Path, path: str, members: tuple[str, ...]) -> None:
        self.path = path
        self.file = open(root / path, "wb")  # noqa: SIM115 (closed by the dataset's writer)
        self.stream = HashingStream(self.file)
        self.writer = ShardWriter(self.stream, members)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
