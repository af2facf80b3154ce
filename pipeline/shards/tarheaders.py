"""Headers of tar members, checked and read many at a time.

    names = checked_names(data, headers_at=[0, 7680], checksums=[5410, 5397], where="a.tar")

Tars are read by several programs, which should see the same members in them: what some refuse, take
for a folder or silently end at, is a ShardError here.
"""

from __future__ import annotations

import mmap
import re

import numpy as np

from pipeline.shards.format import ShardError
from pipeline.shards.sidecar import BLOCK_BYTES

MAX_NAME_BYTES = 4096
_CHUNK = 16384  # headers checked at a time: 8 MiB
_NUMBER_FIELDS = ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+")


def checked_names(
    data: mmap.mmap, headers_at: list[int], checksums: list[int], where: str
) -> list[str]:
    """The names in the headers of files at these bytes, as they stand there; all are sound."""
    count = len(data) // BLOCK_BYTES
    blocks = np.frombuffer(data, dtype=np.uint8, count=count * BLOCK_BYTES)
    blocks = blocks.reshape(count, BLOCK_BYTES)
    names: list[str] = []
    for first in range(0, len(headers_at), _CHUNK):
        positions = np.array(headers_at[first : first + _CHUNK], dtype=np.int64)
        headers = blocks[positions // BLOCK_BYTES]
        sums = headers.sum(axis=1, dtype=np.int64)
        sums += 8 * ord(" ") - headers[:, 148:156].sum(axis=1, dtype=np.int64)
        wrong = np.flatnonzero(sums != np.array(checksums[first : first + _CHUNK]))
        if wrong.size:
            position = int(positions[wrong[0]])
            raise ShardError(f"{where} at byte {position}: a header whose checksum is wrong")
        strange = np.flatnonzero(~has_numbers(headers))
        if strange.size:
            position = int(positions[strange[0]])
            raise ShardError(f"{where} at byte {position}: a header whose numbers are none")
        names += _names(headers, positions, where)
    return names


def has_numbers(headers: np.ndarray) -> np.ndarray:
    """bool [n]: mode, owner, time and device are numbers; other readers end at those that are not.

    Octal digits in one run among spaces and zeros, or binary (the first bit is set).
    """
    sound = np.ones(len(headers), dtype=bool)
    for first, last in _NUMBER_FIELDS:
        field = headers[:, first:last]
        digit = (field >= ord("0")) & (field <= ord("7"))
        blank = (field == ord(" ")) | (field == 0)
        runs = digit[:, 0] + (digit[:, 1:] & ~digit[:, :-1]).sum(axis=1)
        is_binary = (field[:, 0] == 0x80) | (field[:, 0] == 0xFF)
        sound &= is_binary | ((digit | blank).all(axis=1) & (runs <= 1))
    return sound


def _names(headers: np.ndarray, positions: np.ndarray, where: str) -> list[str]:
    """Name, and prefix where there is one, of each header [n, 512]."""
    magic = headers[:, 257:265]
    is_ustar = (magic[:, :6] == np.frombuffer(b"ustar\0", np.uint8)).all(axis=1)
    is_gnu = (magic == np.frombuffer(b"ustar  \0", np.uint8)).all(axis=1)
    is_old = (magic == 0).all(axis=1)
    strange = np.flatnonzero(~(is_ustar | is_gnu | is_old))
    if strange.size:
        position = int(positions[strange[0]])
        raise ShardError(f"{where} at byte {position}: not a sound tar file (no header here)")
    raw = np.ascontiguousarray(headers[:, :100]).view("S100").ravel().tolist()
    for index in np.flatnonzero(headers[:, 156] == 0).tolist():
        if raw[index].split(b"\0", 1)[0].endswith(b"/"):
            at = f"{where} at byte {positions[index]}"
            raise ShardError(f"{at}: a file that other readers take for a folder")
    for index in np.flatnonzero(headers[:, 345] != 0).tolist():
        if not is_ustar[index]:
            raise ShardError(
                f"{where} at byte {positions[index]}: a name in two parts, which this kind of "
                "tar does not have"
            )
        prefix = headers[index, 345:500].tobytes().split(b"\0", 1)[0]
        raw[index] = prefix + b"/" + raw[index].split(b"\0", 1)[0]
    joined = b"\0".join(raw)
    if joined.count(b"\0") >= len(raw):
        joined = b"\0".join(name.split(b"\0", 1)[0] for name in raw)
    return decoded(joined).split("\0")


def decoded(name: bytes) -> str:
    """A name as text; `check_name` refuses one that is not UTF-8."""
    return name.decode(errors="surrogateescape")


def check_name(name: str, where: str, position: int) -> None:
    """ShardError when a member's name is none, or a path that leaves the folder."""
    if _PLAIN_NAME.fullmatch(name):
        return
    where = f"{where} at byte {position}"
    if any("\udc80" <= letter <= "\udcff" for letter in name):
        raise ShardError(f"{where}: the name {name[:60]!a} is not UTF-8")
    if not name or not name.isprintable():
        raise ShardError(f"{where}: {name[:100]!r} is no name for a member")
    if len(name) > MAX_NAME_BYTES:
        raise ShardError(f"{where}: a name of {len(name)} letters")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ShardError(f"{where}: {name!r} has a path that leaves the folder")
