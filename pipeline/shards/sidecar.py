"""The sidecar of a shard: where each member's payload lies, so that samples are read by memory map.

    8 bytes   magic "TESSIDX1"
    4 bytes   length of the header, little endian
    header    JSON: members (in tar order), count, tar_bytes
    records   count x members of (offset u64, length u32, crc32 u32), little endian

Sample i of the shard is row i. `KEY` is not kept: it is in the sample's JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.shards.format import ShardError, canonical_json

MAGIC = b"TESSIDX1"
RECORD = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
_MAX_HEADER_BYTES = 65536


@dataclass(frozen=True)
class Sidecar:
    """Members of a shard in tar order and their places: records [count, members]."""

    members: tuple[str, ...]
    records: np.ndarray
    tar_bytes: int


def pack_sidecar(
    members: Sequence[str], records: Sequence[Sequence[tuple[int, int, int]]], tar_bytes: int
) -> bytes:
    """The bytes of a sidecar; `records[i][j]` is (offset, length, crc32) of member j, sample i."""
    header = canonical_json(
        {"members": list(members), "count": len(records), "tar_bytes": tar_bytes}
    )
    table = np.array([tuple(place) for row in records for place in row], dtype=RECORD)
    return MAGIC + struct.pack("<I", len(header)) + header + table.tobytes()


def parse_sidecar(data: bytes | memoryview, where: str) -> Sidecar:
    """Reads a sidecar; raises ShardError when anything in it does not add up."""
    data = memoryview(data)
    if bytes(data[:8]) != MAGIC or len(data) < 12:
        raise ShardError(f"{where}: not a sidecar of this format")
    (header_bytes,) = struct.unpack("<I", data[8:12])
    if header_bytes > _MAX_HEADER_BYTES:
        raise ShardError(f"{where}: sidecar header of {header_bytes} bytes")
    try:
        header = json.loads(bytes(data[12 : 12 + header_bytes]))
        members = tuple(str(name) for name in header["members"])
        count, tar_bytes = int(header["count"]), int(header["tar_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{where}: sidecar header is damaged ({error})") from None
    body = data[12 + header_bytes :]
    if count < 0 or not members or len(body) != count * len(members) * RECORD.itemsize:
        raise ShardError(f"{where}: sidecar holds {len(body)} bytes for {count} samples")
    records = np.frombuffer(body, dtype=RECORD).reshape(count, len(members))
    ends = records["offset"] + records["length"]
    if records.size and (int(ends.max()) > tar_bytes or int(records["offset"].max()) > tar_bytes):
        raise ShardError(f"{where}: sidecar points behind the end of its tar")
    return Sidecar(members, records, tar_bytes)
