"""The index of a tar that came without one: samples by WebDataset's rule, and a sidecar for them.

    index = index_tar("imagenet/000000.tar")
    index.sidecar.places["offset"][0, 1]       # of member index.sidecar.members[1], sample 0
    index.keys[0]                              # "n01440764/0001"
    index.arrays["codes.npy"].headers[0].shape

A name is KEY.EXTENSION, cut at the first dot of its last part; a sample is the run of members with
one key. As in WebDataset, extensions are read in small letters, and hidden files, names without a
dot and `__name__` entries are no members of samples. Members that only a pickle could be are listed
like any other and never opened. Only the tar is read; nothing is written beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.shards import checksum
from pipeline.shards.format import ShardError
from pipeline.shards.npy import (
    ArrayHeader,
    header_length,
    parse_array_header,
)
from pipeline.shards.sidecar import MAX_MEMBERS, PLACE, SAMPLE, Sidecar, clip_bytes, key_bytes
from pipeline.shards.tarwalk import TarFile, Walk, open_tar, walk_tar

_MAX_ARRAY_HEADERS = 10_000
_MAX_EXTENSION = 200
_META = re.compile(r"__[^/]*__(?:$|/)")
_RESERVED = ("__key__", "__url__", "__local_path__")


@dataclass(frozen=True)
class MemberArrays:
    """The `.npy` headers of one member: sample i has `headers[header_of[i]]` (-1: no member)."""

    headers: list[ArrayHeader]
    header_of: np.ndarray


@dataclass(frozen=True)
class TarIndex:
    """What `index_tar` finds: the sidecar, the samples' keys, the arrays by member.

    A sample without a member has offset 0 and length 0 there.
    """

    sidecar: Sidecar
    keys: list[str]
    arrays: dict[str, MemberArrays]


def index_tar(path: str | Path, *, crc: bool = True) -> TarIndex:
    """Reads the headers of a tar (and, for `crc`, its payloads); ShardError when it is not sound.

    Without `crc` the sums are zero, which means that they are not known.
    """
    with open_tar(path) as tar:
        walk = walk_tar(tar)
        keys, members, places = group_members(tar, walk)
        if crc:
            _add_sums(tar, places)
        arrays = {
            member: _array_headers(tar, keys, member, places[:, column])
            for column, member in enumerate(members)
            if member.rsplit(".", 1)[-1] == "npy"
        }
    samples = np.frombuffer(
        b"".join([key_bytes(key) + clip_bytes(key) + bytes(16) for key in keys]), dtype=SAMPLE
    )
    return TarIndex(Sidecar(members, samples, places, tar.size_bytes), keys, arrays)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in small letters), or None when WebDataset passes the name over."""
    folder, slash, last = name.rpartition("/")
    key, dot, extension = last.partition(".")
    if not key or not dot or (name.startswith("__") and _META.match(name)):
        return None
    return folder + slash + key, extension.lower()


def group_members(tar: TarFile, walk: Walk) -> tuple[list[str], tuple[str, ...], np.ndarray]:
    """Keys [count], members in the order of their first appearance, places [count, members].

    A sample without a member has offset 0 and length 0 there; checksums are not computed.
    """
    keys: list[str] = []
    seen: set[str] = set()
    columns: dict[str, int] = {}
    sample_of, column_of = [], []
    of_sample: set[str] = set()
    last_key = None
    for index, name in enumerate(walk.names):
        parts = split_name(name)
        if parts is None:
            sample_of.append(-1)
            column_of.append(-1)
            continue
        key, extension = parts
        if key != last_key:
            if key in seen:
                raise _error(tar, walk, index, f"the members of {key!r} are not beside each other")
            seen.add(key)
            keys.append(key)
            last_key, of_sample = key, set()
        if extension in of_sample:
            raise _error(tar, walk, index, f"{name!r} is in it twice")
        if not 0 < len(extension) <= _MAX_EXTENSION or extension in _RESERVED:
            raise _error(tar, walk, index, f"{name!r} is not named KEY.EXTENSION")
        of_sample.add(extension)
        sample_of.append(len(keys) - 1)
        column = columns.setdefault(extension, len(columns))
        if column == MAX_MEMBERS:
            many = f"more than {MAX_MEMBERS} different extensions ({name!r})"
            raise _error(tar, walk, index, many)
        column_of.append(column)
    if not keys:
        raise ShardError(f"{tar.where}: an empty tar (no members named KEY.EXTENSION)")
    places = np.zeros((len(keys), len(columns)), dtype=PLACE)
    rows, of_column = np.array(sample_of), np.array(column_of)
    kept = rows >= 0
    places["offset"][rows[kept], of_column[kept]] = walk.offsets[kept]
    places["length"][rows[kept], of_column[kept]] = walk.lengths[kept]
    return keys, tuple(columns), places


def _error(tar: TarFile, walk: Walk, index: int, message: str) -> ShardError:
    return ShardError(f"{tar.where} at byte {walk.offsets[index]}: {message}")


def _add_sums(tar: TarFile, places: np.ndarray) -> None:
    with memoryview(tar.data) as view:
        flat = places.reshape(-1)
        ends = flat["offset"] + flat["length"]
        flat["crc32"] = [
            checksum.crc32(view[start:end])
            for start, end in zip(flat["offset"].tolist(), ends.tolist())
        ]


def _array_headers(
    tar: TarFile, keys: Sequence[str], member: str, places: np.ndarray
) -> MemberArrays:
    """Distinct headers are parsed once; each array's size is compared with its member's."""
    data = tar.data
    numbers: dict[bytes, int] = {}
    headers: list[ArrayHeader] = []
    lengths: list[int] = []
    header_of = np.full(len(places), -1, dtype=np.int32)
    starts = places["offset"].tolist()
    known = b""
    for row, (start, length) in enumerate(zip(starts, places["length"].tolist())):
        if not start:
            continue
        raw = data[start : start + min(length, len(known) or 128)]
        number = numbers.get(raw)
        if number is None:
            where = f"{tar.where} at byte {start}: {keys[row]}.{member}"
            raw = data[start : start + min(length, header_length(data[start : start + 12], where))]
            number = numbers.get(raw)
        if number is None:
            header = parse_array_header(raw, where)
            if len(headers) == _MAX_ARRAY_HEADERS:
                raise ShardError(f"{where}: more than {len(headers)} different shapes")
            number = numbers[raw] = len(headers)
            headers.append(header)
            lengths.append(header.header_bytes + header.payload_bytes)
        known = raw
        header_of[row] = number
        if lengths[number] != length:
            header = headers[number]
            raise ShardError(
                f"{tar.where} at byte {start}: {keys[row]}.{member} is {length} bytes, but shape "
                f"{header.shape} of {header.dtype} makes {lengths[number]}"
            )
    return MemberArrays(headers, header_of)
