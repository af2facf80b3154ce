"""The sidecar of a shard: where each member's payload lies, so that samples are read by memory map.

    8 bytes   magic "TESSIDX2"
    4 bytes   length of the header, little endian
    4 bytes   crc32 of everything after these 16 bytes
    header    JSON: members (in tar order), count, tar_bytes; spaces up to a multiple of 64 bytes
    samples   count x (key u64 u64, clip u64, code_key u64 u64), little endian
    places    count x members of (offset u64, length u32, crc32 u32), little endian

Sample i of the shard is row i; one without a member has offset 0 and length 0 there. `key` is the
digest of its name, which joins token sets that lie in different shards; `clip` is the digest of
what it shows, equal for the views of one clip; `code_key` says how its arrays were made (zero:
unknown), so that a later build can copy them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.shards import checksum
from pipeline.shards.format import ShardError, canonical_json

MAGIC = b"TESSIDX2"
SAMPLE = np.dtype([("key", "<u8", (2,)), ("clip", "<u8"), ("code_key", "<u8", (2,))])
PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
_ALIGNMENT = 64
MAX_MEMBERS = 64
BLOCK_BYTES = 512
_MAX_HEADER_BYTES = 65536
_MAX_COUNT = 1 << 31
_MAX_TAR_BYTES = 1 << 62


@dataclass(frozen=True)
class Sidecar:
    """A shard's members in tar order, who its samples are, and where: places [count, members]."""

    members: tuple[str, ...]
    samples: np.ndarray
    places: np.ndarray
    tar_bytes: int


def key_bytes(key: str) -> bytes:
    """128 bits of a sample's name, as they stand in `samples`."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def clip_bytes(clip: str) -> bytes:
    """64 bits of the name that all views of a clip share."""
    return hashlib.blake2b(clip.encode(), digest_size=8).digest()


def code_key_bytes(code_key: str | None) -> bytes:
    """A code key of 32 hexadecimal digits as 128 bits; zeros for None."""
    if code_key is None:
        return bytes(16)
    raw = bytes.fromhex(code_key)
    if len(raw) != 16:
        raise ValueError(f"code key {code_key!r} is not 32 hexadecimal digits")
    return raw


def key_digest(key: str) -> tuple[int, int]:
    """The two words of `key_bytes`, for comparison with `samples["key"]`."""
    digest = key_bytes(key)
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def code_key_words(code_key: str | None) -> tuple[int, int]:
    """The two words of `code_key_bytes`, for comparison with `samples["code_key"]`."""
    raw = code_key_bytes(code_key)
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def clip_digest(clip: str) -> int:
    """`clip_bytes` as the number in `samples["clip"]`."""
    return int.from_bytes(clip_bytes(clip), "little")


def pack_sidecar(
    members: Sequence[str], samples: np.ndarray, places: np.ndarray, tar_bytes: int
) -> bytes:
    """The bytes of a sidecar; `samples` [count] of SAMPLE, `places` [count, members] of PLACE."""
    header = canonical_json(
        {"members": list(members), "count": len(samples), "tar_bytes": tar_bytes}
    )
    header += b" " * (-(len(header) + 16) % _ALIGNMENT)
    if len(members) > MAX_MEMBERS or len(header) > _MAX_HEADER_BYTES:
        raise ValueError(f"{len(members)} members have no place in a sidecar")
    body = header + samples.astype(SAMPLE).tobytes() + places.astype(PLACE).tobytes()
    return MAGIC + struct.pack("<II", len(header), checksum.crc32(body)) + body


def parse_sidecar(data: bytes | memoryview, where: str, check: bool = True) -> Sidecar:
    """Reads a sidecar; raises ShardError when anything in it does not add up.

    `check=False` leaves the crc32 out, for an index whose whole was checked before.
    """
    data = memoryview(data)
    if len(data) < 16 or bytes(data[:8]) != MAGIC:
        if bytes(data[:7]) == MAGIC[:7]:
            raise ShardError(f"{where}: a sidecar of another version; see `tessera migrate`")
        raise ShardError(f"{where}: not a sidecar of this format")
    header_bytes, crc32 = struct.unpack("<II", data[8:16])
    if header_bytes > _MAX_HEADER_BYTES:
        raise ShardError(f"{where}: sidecar header of {header_bytes} bytes")
    if check and checksum.crc32(data[16:]) != crc32:
        raise ShardError(f"{where}: the sidecar is damaged (crc32)")
    members, count, tar_bytes = _header(bytes(data[16 : 16 + header_bytes]), where)
    body = data[16 + header_bytes :]
    sample_bytes = count * SAMPLE.itemsize
    expected = sample_bytes + count * len(members) * PLACE.itemsize
    if len(body) != expected:
        raise ShardError(f"{where}: sidecar holds {len(body)} bytes for {count} samples")
    samples = np.frombuffer(body[:sample_bytes], dtype=SAMPLE)
    places = np.frombuffer(body[sample_bytes:], dtype=PLACE).reshape(count, len(members))
    _check_places(places, tar_bytes, where)
    return Sidecar(members, samples, places, tar_bytes)


def _header(text: bytes, where: str) -> tuple[tuple[str, ...], int, int]:
    """(members, count, tar_bytes)"""
    try:
        header = json.loads(text.decode())
        members, count, tar_bytes = (header[name] for name in ("members", "count", "tar_bytes"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ShardError(f"{where}: sidecar header is damaged") from None
    sound = (
        isinstance(members, list)
        and 1 <= len(members) <= MAX_MEMBERS
        and all(isinstance(name, str) and name and name.isprintable() for name in members)
        and len(set(members)) == len(members)
        and type(count) is int
        and type(tar_bytes) is int
        and 0 <= count <= _MAX_COUNT
        and 0 <= tar_bytes <= _MAX_TAR_BYTES
    )
    if not sound:
        raise ShardError(f"{where}: sidecar header is damaged")
    return tuple(members), count, tar_bytes


def _check_places(places: np.ndarray, tar_bytes: int, where: str) -> None:
    """Payloads begin at whole blocks behind a header and end inside the tar."""
    if not places.size:
        return
    offsets, lengths = places["offset"], places["length"].astype(np.uint64)
    if int(offsets.max()) > tar_bytes or int((offsets + lengths).max()) > tar_bytes:
        raise ShardError(f"{where}: sidecar points behind the end of its tar")
    if (offsets % BLOCK_BYTES).any() or lengths[offsets == 0].any():
        raise ShardError(f"{where}: sidecar points between the blocks of its tar")
