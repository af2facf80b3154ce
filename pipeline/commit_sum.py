"""The sum of many commits: statistics and sizes of all shards that are committed, in seconds.

    total = sum_commits(storage, [name for name in storage.names("_commits")])
    total.statistics["samples"], total.shard_bytes["parts/train-....tar"]

Files are read ahead by threads. From some thousand commits on, several processes share the work:
most of it is Python's own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.statistics import Statistics, Tally, merge
from pipeline.storage import Storage, open_storage
from tokenizer.settings import UserError

COMMITS_FOLDER = "_commits"
_COMMITS_PER_PROCESS = 1500
"""Fewer than this are summed sooner than a process starts."""
_READ_AHEAD, _READ_AT_ONCE = 256, 16
_THREADS = 16


@dataclass(frozen=True)
class CommitSum:
    """What commits that made shards add up to."""

    statistics: Statistics
    shard_bytes: dict[str, int]
    """By the shard's path, in the order of the commits."""


def sum_commits(
    storage: Storage, names: Sequence[str], wanted: Collection[str] | None = None
) -> CommitSum:
    """Adds up the commits that made shards, or the `wanted` ones; UserError at a damaged one."""
    processes = min(os.cpu_count() or 1, len(names) // _COMMITS_PER_PROCESS)
    if processes < 2:
        return _sum_here(storage, names, wanted)
    size = -(-len(names) // processes)
    pieces = [names[start : start + size] for start in range(0, len(names), size)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(pieces) - 1, mp_context=context) as pool:
        others = [pool.submit(_sum_there, storage.root, piece, wanted) for piece in pieces[1:]]
        sums = [_sum_here(storage, pieces[0], wanted), *(each.result() for each in others)]
    return CommitSum(
        merge(*(each.statistics for each in sums)),
        {path: size for each in sums for path, size in each.shard_bytes.items()},
    )


def read_commits(storage: Storage, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, record) of commits in the order given, some read ahead; UserError when damaged."""

    def read(piece: Sequence[str]) -> list[bytes]:
        return [storage.read(f"{COMMITS_FOLDER}/{name}") for name in piece]

    size = _READ_AT_ONCE if len(names) > _THREADS * _READ_AT_ONCE else 1
    pieces = [names[start : start + size] for start in range(0, len(names), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(pieces), _READ_AHEAD // size):
            some = pieces[start : start + _READ_AHEAD // size]
            for piece, contents in zip(some, pool.map(read, some)):
                for name, content in zip(piece, contents):
                    try:
                        yield name, json.loads(content.decode("utf-8"))
                    except (ValueError, RecursionError) as error:
                        raise _damaged(storage, name, error) from None


def _sum_there(root: str, names: Sequence[str], wanted: Collection[str] | None) -> CommitSum:
    return _sum_here(open_storage(root), names, wanted)


def _sum_here(storage: Storage, names: Sequence[str], wanted: Collection[str] | None) -> CommitSum:
    tally, sizes = Tally(), {}
    for name, record in read_commits(storage, names):
        try:
            result = record["result"]
            if not result["parts"]:
                continue
            path = str(result["parts"][0]["path"])
            if wanted is not None and path not in wanted:
                continue
            tally.add_record(result["statistics"])
            sizes[path] = int(result["parts"][0]["size_bytes"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise _damaged(storage, name, error) from None
    return CommitSum(tally.to_json(), sizes)


def _damaged(storage: Storage, name: str, error: Exception) -> UserError:
    path = f"{storage.root}/{COMMITS_FOLDER}/{name}"
    return UserError(f"{path}: not a commit of this version, or damaged ({error})")
