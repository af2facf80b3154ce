"""Inspection: what is in one shard, read with plain tarfile and numpy, trusting nothing.

    shard = open_shard("data/parts/train-t9_h64_w64-1f0c.tar")
    sample = shard.read(shard.keys[0])
    sample.arrays["codes.npy"].shape, sample.metadata["caption"]

A shard may come from anywhere. A member that is not a plain file, that has a path, that is larger
than the limits or than the file, an array whose header lies, or JSON that is not an object: each is
one `ShardError` that names the member, and nothing is ever unpacked or unpickled.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.format import ShardError

MAX_MEMBERS = 4_000_000
MAX_JSON_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 30
_MAX_NPY_HEADER_BYTES = 10_000
_ARRAY_KINDS = "biuf"


@dataclass(frozen=True)
class Member:
    """A file in a shard: `KEY.<extension>`, and where its bytes are."""

    extension: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Sample:
    """Everything of one key; arrays by extension ("codes.npy")."""

    key: str
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]
    other: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes of members that are neither .npy nor .json."""


@dataclass(frozen=True)
class InspectedShard:
    """A shard's members by key, in tar order; its structure is sound."""

    path: Path
    size_bytes: int
    members: dict[str, list[Member]]

    @property
    def keys(self) -> list[str]:
        return list(self.members)

    def read(self, key: str) -> Sample:
        """Decodes one sample; KeyError when it is not there, ShardError when it is damaged."""
        metadata: dict[str, Any] = {}
        arrays, other = {}, {}
        with open(self.path, "rb") as file:
            for member in self.members[key]:
                where = f"{self.path}: {key}.{member.extension}"
                if member.extension == "json":
                    metadata = _read_json(file, member, where)
                elif member.extension.endswith("npy"):
                    arrays[member.extension] = _read_array(file, member, where)
                else:
                    other[member.extension] = member.size_bytes
        return Sample(key, metadata, arrays, other)


def open_shard(path: str | Path) -> InspectedShard:
    """Lists a shard's members; raises ShardError when it is not a sound, uncompressed tar."""
    path = Path(path)
    members: dict[str, list[Member]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            last_key = None
            for count, entry in enumerate(tar):
                if count == MAX_MEMBERS:
                    raise ShardError(f"{path}: more than {MAX_MEMBERS} members")
                key, member = _member(entry, size, str(path))
                if key != last_key and key in members:
                    raise ShardError(f"{path}: the members of {key!r} are not beside each other")
                of_key = members.setdefault(key, [])
                if any(each.extension == member.extension for each in of_key):
                    raise ShardError(f"{path}: {entry.name!r} is in it twice")
                of_key.append(member)
                last_key = key
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ShardError(f"{path}: a folder, not a tar; see `tessera stats {path}`") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ShardError(f"{path}: not a sound tar file ({error})") from None
    if not members:
        raise ShardError(f"{path}: an empty tar")
    return InspectedShard(path, size, members)


def _member(entry: tarfile.TarInfo, tar_bytes: int, where: str) -> tuple[str, Member]:
    """(key, member) of a tar entry; the key ends at the name's first dot."""
    name = entry.name
    if not entry.isreg() or entry.issparse():
        raise ShardError(f"{where}: {name!r} is not a plain file (a link, folder or device)")
    if "/" in name or "\\" in name or name.startswith("."):
        raise ShardError(f"{where}: {name!r} has a path; members are named KEY.EXTENSION")
    key, dot, extension = name.partition(".")
    if not dot or not extension or not name.isprintable():
        raise ShardError(f"{where}: {name!r} is not named KEY.EXTENSION")
    if entry.size < 0 or entry.offset_data + entry.size > tar_bytes:
        raise ShardError(f"{where}: {name!r} ends behind the end of the file (truncated?)")
    return key, Member(extension, entry.offset_data, entry.size)


def _read_json(file: Any, member: Member, where: str) -> dict[str, Any]:
    if member.size_bytes > MAX_JSON_BYTES:
        raise ShardError(f"{where}: {member.size_bytes} bytes of JSON; at most {MAX_JSON_BYTES}")
    file.seek(member.offset)
    try:
        values = json.loads(file.read(member.size_bytes))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ShardError(f"{where}: JSON of a sample must be an object")
    return values


def _read_array(file: Any, member: Member, where: str) -> np.ndarray:
    """The array, after its header was compared with the bytes that are there."""
    if member.size_bytes > MAX_ARRAY_BYTES:
        raise ShardError(f"{where}: {member.size_bytes} bytes; at most {MAX_ARRAY_BYTES}")
    file.seek(member.offset)
    stream = io.BytesIO(file.read(member.size_bytes))
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(stream, _MAX_NPY_HEADER_BYTES)
    except KeyError:
        raise ShardError(f"{where}: unknown version of .npy") from None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ShardError(f"{where}: not a sound .npy ({error})") from None
    if dtype.hasobject or dtype.kind not in _ARRAY_KINDS:
        raise ShardError(f"{where}: dtype {dtype} is not a plain number")
    if any(extent < 0 for extent in shape):
        raise ShardError(f"{where}: shape {shape} is not possible")
    expected = math.prod(shape) * dtype.itemsize
    present = member.size_bytes - stream.tell()
    if expected != present:
        raise ShardError(f"{where}: shape {shape} of {dtype} is {expected} bytes, not {present}")
    flat = np.frombuffer(stream.getbuffer(), dtype=dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
