"""Tombstones: samples that `tessera remove` took out, left out by readers from then on.

DIR/_removed/<24 digits of its sha256>.json   {"version": 1, "source_ids": [...],
                                               "rows": {"parts/0.tar": [3, 4, 9]}}

The bytes stay in the shards until `tessera gc --rewrite`; nobody is shown them any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.shards.format import ShardError, canonical_json

REMOVED_FOLDER = "_removed"
_VERSION = 1
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Tombstone:
    """Removed sources, and the rows of their samples by the path of the shard."""

    source_ids: tuple[str, ...]
    rows: Mapping[str, list[int]]

    def to_file(self) -> tuple[str, bytes]:
        """Its name in `_removed/`, which is the hash of its content, and the content."""
        record = {"version": _VERSION, "source_ids": sorted(self.source_ids), "rows": self.rows}
        content = canonical_json(record) + b"\n"
        return _name_of(content), content


@dataclass(frozen=True)
class Removed:
    """Removed rows by shard, ascending, and the names of the tombstones."""

    names: tuple[str, ...]
    rows: dict[str, np.ndarray]


def parse_tombstone(name: str, content: bytes) -> Tombstone:
    """The tombstone of a file name and its content; ValueError when it is not sound."""
    if name != _name_of(content):
        raise ValueError("its name is not the hash of its content")
    try:
        record = json.loads(content.decode())
        if type(record["version"]) is not int or record["version"] != _VERSION:
            raise ValueError(f"version {record['version']!r} is unknown")
        source_ids, rows = record["source_ids"], dict(record["rows"].items())
        if not isinstance(source_ids, list) or not all(type(each) is str for each in source_ids):
            raise ValueError("source_ids must be a list of ids")
        for numbers in rows.values():
            if not isinstance(numbers, list) or not all(type(row) is int for row in numbers):
                raise ValueError("rows must be a list of row numbers")
            if numbers and not 0 <= min(numbers) <= max(numbers) < 1 << 63:
                raise ValueError("rows must be a list of row numbers")
        return Tombstone(tuple(source_ids), rows)
    except _DAMAGE as error:
        raise ValueError(str(error) or repr(error)) from None


def read_tombstones(
    names: Iterable[str], read: Callable[[str], bytes], where: str
) -> Iterator[tuple[str, Tombstone]]:
    """(name, tombstone) of all files of `_removed/`; ShardError at one that is damaged."""
    for name in sorted(name for name in names if name.endswith(".json")):
        path = f"{REMOVED_FOLDER}/{name}"
        try:
            yield name, parse_tombstone(name, read(path))
        except ValueError as error:
            raise ShardError(f"{where}/{path}: damaged tombstone ({error}); put it back") from None


def read_removed(names: Iterable[str], read: Callable[[str], bytes], where: str) -> Removed:
    """All removed rows of a dataset; ShardError when a tombstone is damaged, never fewer rows."""
    chosen: list[str] = []
    found: dict[str, list[np.ndarray]] = {}
    for name, tombstone in read_tombstones(names, read, where):
        chosen.append(name)
        for shard, rows in tombstone.rows.items():
            found.setdefault(shard, []).append(np.array(rows, dtype=np.int64))
    rows_by_shard = {shard: np.unique(np.concatenate(each)) for shard, each in found.items()}
    return Removed(tuple(chosen), rows_by_shard)


def _name_of(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:24]}.json"
