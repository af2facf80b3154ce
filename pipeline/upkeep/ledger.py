"""The ledger: all commits of a dataset, read and checked, and what they claim of shards.

    results, problems = check_commits(store)
    claims = claims_of(store, results, declared)

A commit whose own numbers do not add up is damaged, and stands for nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.commit import COMMITS, Part, Store, result_sha256
from pipeline.shard_draft import token_sets_of
from pipeline.shards.format import INDEX_FILE
from pipeline.statistics import outcome_totals
from pipeline.upkeep.agreement import Declared
from pipeline.upkeep.damage import ArrayClaim, Problem, ShardClaim

UNIT = re.compile(r"(annotate|caption|tokenize)-[0-9a-f]{24}")
PART = re.compile(r"parts/[A-Za-z0-9_-]+-[0-9a-f]{12}\.(tar|idx|parquet|json)")
_ACCOUNTS = ("n_in", "n_kept", "n_dropped", "n_error")
_THREADS = 8


def check_commits(store: Store) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The results of all sound commits, and what is wrong with the others."""

    def read(unit: str) -> tuple[str, dict[str, Any] | None, str]:
        try:
            record = json.loads(store.storage.read(f"{COMMITS}/{unit}.json"))
            wrong = _wrong_commit(unit, record) or _wrong_hash(record)
            return unit, None if wrong else record["result"], wrong
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return unit, None, f"not the JSON of a commit ({error!r})"
        except OSError as error:
            return unit, None, f"cannot be read ({error})"

    results, problems = {}, []
    with ThreadPoolExecutor(_THREADS) as pool:
        for unit, result, wrong in pool.map(read, sorted(store.committed())):
            if result is not None:
                results[unit] = result
            elif UNIT.fullmatch(unit):
                problems.append(
                    Problem(
                        file=f"{COMMITS}/{unit}.json",
                        kind="damaged",
                        what=wrong,
                        remedy=f"`tessera verify {store.root} --repair`, then `tessera build`, "
                        "make it again",
                        unit=unit,
                    )
                )
    return results, problems


def claims_of(
    store: Store, results: Mapping[str, dict[str, Any]], declared: Declared | None
) -> list[ShardClaim]:
    """Every shard that a commit names; without commits, those that `shards.json` names."""
    claims = [
        ShardClaim(
            unit=unit,
            tar=Part(**result["parts"][0]),
            sidecar=Part(**result["parts"][1]),
            num_samples=result["num_samples"],
            arrays=tuple(ArrayClaim.of(each, schedule) for each, schedule in token_sets_of(result)),
        )
        for unit, result in results.items()
        if result["phase"] == "tokenize" and result["parts"]
    ]
    if results or declared is None:
        return claims
    index = _index(store)
    return [
        ShardClaim(
            unit=None,
            tar=Part(entry.path, entry.sha256, entry.size_bytes),
            sidecar=Part(
                entry.path.removesuffix(".tar") + ".idx",
                hashlib.sha256(index[entry.index_offset :][: entry.index_bytes]).hexdigest(),
                entry.index_bytes,
            ),
            num_samples=entry.num_samples,
            arrays=tuple(
                ArrayClaim.of(each, schedule)
                for each, schedule in declared.token_sets_of(entry.bucket)
            ),
        )
        for entry in declared.shards
    ]


def _wrong_commit(unit: str, record: dict[str, Any]) -> str:
    """What does not add up in a commit; "" when it does."""
    result = record["result"]
    phase = unit.partition("-")[0]
    if record["unit"] != unit or result["phase"] != phase:
        return f"it is the commit of {record['unit']!r}"
    for part in result["parts"]:
        if not PART.fullmatch(part["path"]) or not re.fullmatch("[0-9a-f]{64}", part["sha256"]):
            return f"it names {part['path']!r}, which is no part"
        int(part["size_bytes"])
    if phase == "caption":
        return "" if len(result["parts"]) == 1 else "it names no part"
    counts = [int(result[name]) for name in _ACCOUNTS]
    if counts[0] != sum(counts[1:]):
        return f"n_in {counts[0]} is not kept + dropped + error, {' + '.join(map(str, counts[1:]))}"
    if list(outcome_totals(result["statistics"]).values()) != counts:
        return f"its statistics count other outcomes than {counts}"
    if phase == "annotate":
        return "" if len(result["parts"]) == 1 else "it names no part"
    if result["num_samples"] != counts[1] or result["statistics"]["samples"] != counts[1]:
        return f"num_samples {result['num_samples']} is not n_kept {counts[1]}"
    if len(result["failed"]) != counts[3]:
        return f"{len(result['failed'])} clips failed, n_error is {counts[3]}"
    return "" if len(result["parts"]) == (2 if counts[1] else 0) else "it names no shard"


def _wrong_hash(record: dict[str, Any]) -> str:
    """ "" for commits of format version 1, which have none."""
    expected = record.get("sha256")
    return "" if expected in (None, result_sha256(record["result"])) else "its result was changed"


def _index(store: Store) -> memoryview:
    try:
        return memoryview(store.storage.read(INDEX_FILE))
    except OSError:
        return memoryview(b"")
