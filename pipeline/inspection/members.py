"""Inspection: what is in one shard, read with plain numpy, trusting nothing.

    shard = open_shard("data/parts/train-t9_h64_w64-1f0c.tar")
    sample = shard.read(shard.keys[0])
    sample.arrays["codes.npy"].shape, sample.metadata["caption"]

A shard may come from anywhere. A member that is not a plain file, whose path leaves the folder,
that is larger than the limits or than the file, an array whose header lies, or JSON that is not an
object: each is one `ShardError` that names the member, and nothing is ever unpacked or unpickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.format import ShardError
from pipeline.shards.npy import parse_array_header
from pipeline.shards.tarindex import group_members
from pipeline.shards.tarwalk import open_tar, walk_tar

MAX_JSON_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 30


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
    with open_tar(path) as tar:
        keys, extensions, places = group_members(tar, walk_tar(tar))
    members = {}
    for key, offsets, lengths in zip(
        keys, places["offset"].tolist(), places["length"].tolist(), strict=True
    ):
        of_key = zip(extensions, offsets, lengths)
        present = [Member(extension, at, size) for extension, at, size in of_key if at]
        members[key] = sorted(present, key=lambda member: member.offset)
    return InspectedShard(Path(path), tar.size_bytes, members)


def _read_json(file: Any, member: Member, where: str) -> dict[str, Any]:
    if member.size_bytes > MAX_JSON_BYTES:
        raise ShardError(f"{where}: {member.size_bytes} bytes of JSON; at most {MAX_JSON_BYTES}")
    file.seek(member.offset)
    try:
        values = json.loads(file.read(member.size_bytes).decode())
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
    data = file.read(member.size_bytes)
    header = parse_array_header(data, where)
    present = len(data) - header.header_bytes
    if header.payload_bytes != present:
        raise ShardError(
            f"{where}: shape {header.shape} of {header.dtype} is {header.payload_bytes} bytes, "
            f"not {present}"
        )
    flat = np.frombuffer(data, dtype=header.dtype, offset=header.header_bytes)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")
