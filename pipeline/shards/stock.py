"""Stock WebDataset tars without a sidecar, as a dataset: indexed when they are first opened.

    dataset = open_dataset("laion/*.tar")        # or a folder of tars, or a list of paths
    dataset.samples("train", "n3400").gather([0, 1, 2])

The index of a tar is kept in the cache (see `cache`), by path, size and time of change, never
beside the tar. Every `.npy` member is a token set, `.json` the metadata; samples whose arrays have
the same shapes are a bucket, and all of them are split "train". Samples without arrays are left
out.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from pipeline.shards.cache import cache_folder, publish
from pipeline.shards.format import (
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    bucket_name,
    canonical_json,
)
from pipeline.shards.shard import Shard
from pipeline.shards.sidecar import Sidecar, pack_sidecar, parse_sidecar
from pipeline.shards.tarindex import TarIndex, index_tar
from tokenizer.settings import UserError

_CACHE_VERSION = 1
SPLIT = "train"

Arrays = tuple[tuple[str, str, tuple[int, ...]], ...]  # (member, dtype, shape) of each array


@dataclass(frozen=True)
class StockPart:
    """The samples of one tar whose arrays are alike; `sidecar` is of these samples only."""

    tar: Path
    arrays: Arrays
    sidecar: Sidecar


def find_tars(where: str | Path | Sequence[str | Path]) -> list[Path] | None:
    """The tars that a list, a pattern, a tar or a folder of tars names; None if it is no such."""
    if not isinstance(where, (str, Path)):
        return [Path(each) for each in where]
    path = Path(where)
    if path.is_dir():
        return sorted(path.glob("*.tar")) or None
    if path.suffix != ".tar":
        return None
    if path.is_file():
        return [path]
    found = sorted(map(Path, glob.glob(str(where), recursive=True)))
    if not found:
        raise UserError(f"{where}: no such tar, and no tar matches it")
    return found


class StockFolder:
    """Tars, their parts of alike samples, and what a dataset declares about them."""

    def __init__(self, tars: Sequence[Path]) -> None:
        parts = [part for tar in tars for part in stock_parts(tar)]
        if not parts:
            raise UserError(f"{tars[0]}: no .npy members in {len(tars)} tars; nothing to read")
        self._names = _bucket_names(parts)
        self.token_sets = _token_sets(parts)
        self.buckets = [_bucket(name, arrays[0][2]) for arrays, name in self._names.items()]
        self.shards = [self._entry(part) for part in parts]
        self._parts = {(entry.path, entry.sha256): part for entry, part in zip(self.shards, parts)}
        identity = [[each.sha256, each.bucket] for each in self.shards]
        self.fingerprint = hashlib.sha256(canonical_json(identity)).hexdigest()

    def names(self, folder: str) -> list[str]:
        """Nothing is ever removed from stock tars."""
        return []

    def read(self, name: str) -> bytes:
        raise FileNotFoundError(name)

    def local(self, name: str) -> Path | None:
        """Stock tars come with neither manifest nor tokenizer."""
        return None

    def shard(self, entry: ShardEntry) -> Shard:
        part = self._parts[entry.path, entry.sha256]
        return Shard(
            name=entry.path,
            num_samples=entry.num_samples,
            open_file=lambda: _open(part.tar),
            read_sidecar=lambda: part.sidecar,
        )

    def _entry(self, part: StockPart) -> ShardEntry:
        sidecar = part.sidecar
        content = sidecar.samples.tobytes() + sidecar.places.tobytes()
        return ShardEntry(
            path=str(part.tar),
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=sidecar.tar_bytes,
            num_samples=len(sidecar.samples),
            bucket=self._names[part.arrays],
            split=SPLIT,
            index_offset=0,
            index_bytes=0,
        )


def stock_parts(tar: Path) -> list[StockPart]:
    """The alike samples of a tar, from the cache or by reading its headers."""
    try:
        status = tar.stat()
    except FileNotFoundError:
        raise UserError(f"{tar}: no such tar") from None
    identity = [_CACHE_VERSION, os.path.abspath(tar), status.st_size, status.st_mtime_ns]
    name = hashlib.sha256(canonical_json(identity)).hexdigest()[:32]
    cached = cache_folder() / "indexes" / f"{name}.idx"
    try:
        return _unpacked(cached.read_bytes(), tar)
    except (FileNotFoundError, ShardError):
        parts = _parts(tar, index_tar(tar))
        publish(cached, _packed(parts))
        return parts


def _parts(tar: Path, index: TarIndex) -> list[StockPart]:
    """Groups the samples by the headers of all their arrays."""
    members = index.sidecar.members
    if not index.arrays:
        return []
    table = np.stack([each.header_of for each in index.arrays.values()], axis=1)
    kinds, kind_of = np.unique(table, axis=0, return_inverse=True)
    found = []
    for number, kind in enumerate(kinds.tolist()):
        arrays, columns = [], []
        for (member, each), header in zip(index.arrays.items(), kind):
            if header >= 0:
                array = each.headers[header]
                arrays.append((member, array.dtype.str, array.shape))
                columns.append(members.index(member))
        if not arrays:
            continue
        columns += [members.index("json")] if "json" in members else []
        rows = np.flatnonzero(kind_of.reshape(-1) == number)
        sidecar = Sidecar(
            members=tuple(members[column] for column in columns),
            samples=index.sidecar.samples[rows],
            places=index.sidecar.places[rows][:, columns],
            tar_bytes=index.sidecar.tar_bytes,
        )
        found.append(StockPart(tar, tuple(arrays), sidecar))
    return found


def _packed(parts: Sequence[StockPart]) -> bytes:
    blobs = [
        pack_sidecar(each.sidecar.members, each.sidecar.samples, each.sidecar.places, tar_bytes)
        for each in parts
        for tar_bytes in [each.sidecar.tar_bytes]
    ]
    head = [{"arrays": each.arrays, "bytes": len(blob)} for each, blob in zip(parts, blobs)]
    return canonical_json(head) + b"\n" + b"".join(blobs)


def _unpacked(data: bytes, tar: Path) -> list[StockPart]:
    head, _, body = data.partition(b"\n")
    found, start = [], 0
    try:
        for each in json.loads(head):
            blob = body[start : start + each["bytes"]]
            start += each["bytes"]
            arrays = tuple((member, dtype, tuple(shape)) for member, dtype, shape in each["arrays"])
            found.append(StockPart(tar, arrays, parse_sidecar(blob, f"index of {tar}")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"index of {tar} in the cache is damaged ({error})") from None
    return found


def _token_sets(parts: Sequence[StockPart]) -> list[TokenSet]:
    dtypes: dict[str, set[str]] = {}
    for part in parts:
        for member, dtype, _ in part.arrays:
            dtypes.setdefault(member, set()).add(dtype)
    mixed = [member for member, found in dtypes.items() if len(found) > 1]
    if mixed:
        found = ", ".join(sorted(dtypes[mixed[0]]))
        raise UserError(f"{parts[0].tar}: member {mixed[0]} is of several dtypes: {found}")
    return [
        TokenSet(
            name=member.removesuffix(".npy") or member,
            kind=_kind(np.dtype(min(found))),
            dtype=str(np.dtype(min(found))),
        )
        for member, found in dtypes.items()
    ]


def _kind(dtype: np.dtype) -> Literal["codes", "latents", "frames"]:
    if dtype.kind == "f":
        return "latents"
    return "frames" if dtype == np.uint8 else "codes"


def _bucket_names(parts: Sequence[StockPart]) -> dict[Arrays, str]:
    """A name for each kind of sample, by the shape of its first array."""
    names: dict[Arrays, str] = {}
    for arrays in sorted({part.arrays for part in parts}):
        shape = arrays[0][2]
        frames = len(shape) == 4
        base = bucket_name(*shape[:3]) if frames else "n" + "x".join(map(str, shape))
        taken = sum(name.split("~")[0] == base for name in names.values())
        names[arrays] = f"{base}~{taken + 1}" if taken else base
    return names


def _bucket(name: str, shape: tuple[int, ...]) -> Bucket:
    num_frames, height, width = shape[:3] if len(shape) == 4 else (0, 0, 0)
    return Bucket(name=name, num_frames=num_frames, height=height, width=width)


def _open(tar: Path) -> IO[bytes]:
    try:
        return open(tar, "rb")
    except FileNotFoundError:
        raise ShardError(f"{tar}: missing shard") from None
