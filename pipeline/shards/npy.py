"""The header of a `.npy` member: written as numpy writes it, read without trusting it.

    header = parse_array_header(first_bytes, "a.tar: 0001.codes.npy")
    header.shape, header.dtype, header.header_bytes

Only plain numbers pass: no objects (they would be pickles), no records, no strings. The dictionary
is matched, never evaluated.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.shards.format import ShardError

MAX_HEADER_BYTES = 4096
_MAGIC = b"\x93NUMPY"
_ITEM = re.compile(
    r"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*"""
    r"""('[^']*'|"[^"]*"|True|False|\([0-9,\s]*\))\s*(?:,\s*|(?=\}))"""
)
_NUMBER = re.compile(r"[<>|=]?([biuf])([1248])")
_ITEM_BYTES = {"b": "1", "i": "1248", "u": "1248", "f": "248"}
_MAX_AXES = 32


@dataclass(frozen=True)
class ArrayHeader:
    """What an array is; its payload begins `header_bytes` after the member's first byte."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    header_bytes: int

    @property
    def payload_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@lru_cache(maxsize=4096)
def array_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header that `np.save` writes (version 1.0, C order); ValueError for pickles."""
    if dtype.hasobject:
        raise ValueError(f"an array of {dtype} would be pickled")
    stream = io.BytesIO()
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def header_length(data: bytes, where: str) -> int:
    """Bytes before the payload, from the first 12 of a member; ShardError when it is no array."""
    if len(data) < 12 or data[:6] != _MAGIC:
        raise ShardError(f"{where}: not a sound .npy (no array begins here)")
    if data[6:8] == b"\x01\x00":
        length = 10 + struct.unpack_from("<H", data, 8)[0]
    elif data[6:8] in (b"\x02\x00", b"\x03\x00"):
        length = 12 + struct.unpack_from("<I", data, 8)[0]
    else:
        raise ShardError(f"{where}: unknown version of .npy")
    if length > MAX_HEADER_BYTES:
        raise ShardError(f"{where}: not a sound .npy (a header of {length} bytes)")
    return length


def parse_array_header(data: bytes, where: str) -> ArrayHeader:
    """The header at the beginning of `data`; ShardError when anything in it is not plain."""
    length = header_length(data[:12], where)
    if len(data) < length:
        raise ShardError(f"{where}: not a sound .npy (cut short in its header)")
    start = 10 if data[6] == 1 else 12
    text = data[start:length].decode("latin-1").strip()
    fields = _fields(text)
    if fields is None:
        if "descr" in text and not _NUMBER.search(text):
            raise ShardError(f"{where}: its dtype is not a plain number")
        raise ShardError(f"{where}: not a sound .npy (header {text[:80]!r})")
    number = _NUMBER.fullmatch(fields["descr"].strip("'\""))
    if number is None or number[2] not in _ITEM_BYTES[number[1]]:
        raise ShardError(f"{where}: dtype {fields['descr'][:40]} is not a plain number")
    extents = [each for each in re.split(r"[,\s]+", fields["shape"].strip("()")) if each]
    if len(extents) > _MAX_AXES or any(len(each) > 18 for each in extents):
        raise ShardError(f"{where}: shape {fields['shape'][:80]} is not possible")
    return ArrayHeader(
        shape=tuple(int(each) for each in extents),
        dtype=np.dtype(number[0]),
        fortran_order=fields["fortran_order"] == "True",
        header_bytes=length,
    )


def _fields(text: str) -> dict[str, str] | None:
    """The three entries of the dictionary as written; None when it holds anything else."""
    if not text.startswith("{") or not text.endswith("}"):
        return None
    fields: dict[str, str] = {}
    position = 1
    while position < len(text) - 1:
        item = _ITEM.match(text, position)
        if item is None or item[2] in fields:
            return None
        fields[item[2]] = item[3]
        position = item.end()
    if set(fields) != {"descr", "fortran_order", "shape"}:
        return None
    plain = fields["shape"][0] == "(" and fields["descr"][0] in "'\""
    return fields if plain and fields["fortran_order"] in ("True", "False") else None
