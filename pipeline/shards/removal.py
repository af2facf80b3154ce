"""Tombstones: samples that `tessera remove` took out, left out by readers from then on.

DIR/_removed/<24 digits of its sha256>.json   {"version": 1, "source_ids": [...],
                                               "rows": {"parts/0.tar": [3, 4, 9]}}

The bytes stay in the shards until `tessera gc --rewrite`; nobody is shown them any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.shards.format import ShardError

REMOVED_FOLDER = "_removed"
_VERSION = 1
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Removed:
    """Removed rows by shard, ascending, and the names of the tombstones."""

    names: tuple[str, ...]
    rows: dict[str, np.ndarray]


def read_removed(names: Iterable[str], read: Callable[[str], bytes], where: str) -> Removed:
    """All tombstones of a dataset; ShardError when one is damaged, never fewer rows."""
    chosen = sorted(name for name in names if name.endswith(".json"))
    found: dict[str, list[np.ndarray]] = {}
    for name in chosen:
        path = f"{REMOVED_FOLDER}/{name}"
        data = read(path)
        if name != f"{hashlib.sha256(data).hexdigest()[:24]}.json":
            raise ShardError(f"{where}/{path}: damaged tombstone (its name is not its hash)")
        try:
            content = json.loads(data.decode())
            if type(content["version"]) is not int or content["version"] != _VERSION:
                raise ShardError(f"{where}/{path}: version {content['version']!r} is unknown")
            for shard, rows in content["rows"].items():
                if not isinstance(rows, list) or not all(type(row) is int for row in rows):
                    raise ValueError("rows must be a list of row numbers")
                numbers = np.array(rows, dtype=np.int64)
                if numbers.size and numbers.min() < 0:
                    raise ValueError("rows must be a list of row numbers")
                found.setdefault(shard, []).append(numbers)
        except _DAMAGE as error:
            raise ShardError(f"{where}/{path}: damaged tombstone ({error})") from None
    rows_by_shard = {shard: np.unique(np.concatenate(each)) for shard, each in found.items()}
    return Removed(tuple(chosen), rows_by_shard)
