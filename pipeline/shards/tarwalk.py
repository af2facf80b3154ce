"""Walks the headers of a tar that may come from anywhere, and says where each member lies.

    with open_tar("shards/000000.tar") as tar:
        walk = walk_tar(tar)
        walk.names[0], walk.offsets[0], walk.lengths[0]

Nothing is unpacked. Links, devices, sparse files, paths that leave the folder, headers whose sums
are wrong, names that lie, a file cut short or with data behind its end: each is a ShardError that
names the file and the byte. Folders are passed over, as WebDataset does. Headers are stepped
through one by one; `tarheaders` checks and reads them many at a time.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.shards.format import ShardError
from pipeline.shards.sidecar import BLOCK_BYTES
from pipeline.shards.tarheaders import (
    MAX_NAME_BYTES,
    check_name,
    checked_names,
    decoded,
    has_numbers,
)

MAX_FILES = 4_000_000
MAX_MEMBER_BYTES = (1 << 32) - 1
_MAX_PAX_BYTES = 65536
_ZEROS = bytes(BLOCK_BYTES)
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \0]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) ([^=]{1,200})=")
_KINDS = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class TarFile:
    """An open tar under a memory map."""

    where: str
    size_bytes: int
    data: mmap.mmap


@dataclass(frozen=True)
class Walk:
    """The plain files of a tar in order; `offsets` and `lengths` [n] are of their payloads."""

    names: list[str]
    offsets: np.ndarray
    lengths: np.ndarray


@contextmanager
def open_tar(path: str | Path) -> Iterator[TarFile]:
    """A tar file for reading; ShardError when it is not a file that can be mapped."""
    path = Path(path)
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise ShardError(f"{path}: a folder, not a tar; see `tessera stats {path}`")
        if not stat.S_ISREG(facts.st_mode):
            raise ShardError(f"{path}: not a plain file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 2 * BLOCK_BYTES:
                raise ShardError(f"{path}: {size} bytes are not a sound tar file")
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShardError(f"{path}: cannot be read ({reason})") from None
    try:
        yield TarFile(str(path), size, data)
    finally:
        with suppress(BufferError):  # arrays over it are still in use; it closes with the last
            data.close()


def walk_tar(tar: TarFile) -> Walk:
    """Every plain file of the tar; ShardError with the byte where it is not sound."""
    steps = _step(tar)
    names = checked_names(tar.data, steps.headers, steps.checksums, tar.where)
    for index, name in steps.long_names.items():
        names[index] = name
    for name, position in zip(names, steps.headers):
        check_name(name, tar.where, position)
    headers = np.array(steps.headers, dtype=np.int64)
    return Walk(names, headers + BLOCK_BYTES, np.array(steps.lengths, dtype=np.int64))


@dataclass(frozen=True)
class _Steps:
    """Where the headers of plain files are; `long_names` by index of the file."""

    headers: list[int]
    lengths: list[int]
    checksums: list[int]
    long_names: dict[int, str]


def _step(tar: TarFile) -> _Steps:
    """Goes from header to header until the end mark."""
    data, size = tar.data, tar.size_bytes
    steps = _Steps([], [], [], {})
    headers, lengths, checksums = steps.headers, steps.lengths, steps.checksums
    matched = _OCTAL.fullmatch
    long_name: str | None = None
    position = 0
    while True:
        if position + BLOCK_BYTES > size:
            raise ShardError(f"{tar.where} at byte {position}: no end mark; was it cut short?")
        fields = data[position + 124 : position + 157]  # size, time, checksum, kind
        length_text, sum_text, kind = matched(fields[:12]), matched(fields[24:32]), fields[32:]
        if length_text is None or sum_text is None:
            if not any(fields) and data[position : position + BLOCK_BYTES] == _ZEROS:
                break
            raise ShardError(f"{tar.where} at byte {position}: {_no_header(tar, position)}")
        length = int(length_text[1], 8)
        end = position + BLOCK_BYTES + length
        if length > MAX_MEMBER_BYTES:
            raise ShardError(f"{tar.where} at byte {position}: a member of {length} bytes")
        if end > size:
            raise ShardError(
                f"{tar.where} at byte {position}: a member of {length} bytes ends behind the end "
                "of the file (cut short?)"
            )
        if kind in (b"0", b"\0", b"7"):
            if long_name is not None:
                steps.long_names[len(headers)] = long_name
                long_name = None
            headers.append(position)
            lengths.append(length)
            checksums.append(int(sum_text[1], 8))
            if len(headers) > MAX_FILES:
                raise ShardError(f"{tar.where}: more than {MAX_FILES} members")
        else:
            found = _special(tar, position, kind, length, int(sum_text[1], 8))
            if found is not None and long_name is not None:
                raise ShardError(f"{tar.where} at byte {position}: a member with two long names")
            long_name = None if kind == b"5" else found or long_name
        position = end + -length % BLOCK_BYTES
    if long_name is not None:
        raise ShardError(f"{tar.where} at byte {position}: a long name without a member")
    if np.frombuffer(data, dtype=np.uint8, offset=position).any():
        raise ShardError(f"{tar.where} at byte {position}: data behind the end mark")
    return steps


def _no_header(tar: TarFile, position: int) -> str:
    if position == 0 and tar.data[:2] == b"\x1f\x8b":
        return "not a sound tar file (it is compressed; gunzip it first)"
    return "not a sound tar file (no header here)"


def _special(tar: TarFile, position: int, kind: bytes, length: int, checksum: int) -> str | None:
    """The long name that a header which is no file brings, if any; ShardError for links."""
    where = f"{tar.where} at byte {position}"
    header = tar.data[position : position + BLOCK_BYTES]
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        raise ShardError(f"{where}: a header whose checksum is wrong")
    if not has_numbers(np.frombuffer(header, dtype=np.uint8)[None])[0]:
        raise ShardError(f"{where}: a header whose numbers are none")
    payload_at = position + BLOCK_BYTES
    if kind == b"5":
        if length:
            raise ShardError(f"{where}: a folder with {length} bytes in it")
        return None
    if kind == b"L":
        if length > MAX_NAME_BYTES:
            raise ShardError(f"{where}: a name of {length} bytes")
        name, end, rest = tar.data[payload_at : payload_at + length].partition(b"\0")
        if not end or rest:  # readers differ in where such a name ends
            raise ShardError(f"{where}: a long name that does not end where it says")
        return decoded(name)
    if kind in (b"x", b"g"):
        if length > _MAX_PAX_BYTES:
            raise ShardError(f"{where}: an extended header of {length} bytes")
        records = _pax_records(tar.data[payload_at : payload_at + length], where)
        if any(key in (b"linkpath", b"size") or key.startswith(b"GNU.sparse") for key in records):
            raise ShardError(f"{where}: an extended header that changes a member's size or kind")
        path = records.get(b"path")
        if path is not None and kind == b"g":
            raise ShardError(f"{where}: one name for all members")
        return None if path is None else decoded(path)
    link = decoded(header[:100].split(b"\0", 1)[0])
    what = _KINDS.get(kind, f"of the unknown kind {kind!r}")
    raise ShardError(f"{where}: {link!r} is not a plain file ({what})")


def _pax_records(data: bytes, where: str) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        record = _PAX_RECORD.match(data, position)
        end = position + int(record[1]) if record else 0
        if record is None or end > len(data) or record.end() >= end or data[end - 1] != 0x0A:
            raise ShardError(f"{where}: an extended header that is damaged")
        if record[2] in records:
            raise ShardError(f"{where}: {record[2][:40]!r} twice in an extended header")
        records[record[2]] = data[record.end() : end - 1]
        position = end
    return records
