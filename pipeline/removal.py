"""Removal: sources that may no longer be used, honoured from the moment they are named.

    tessera remove DIR --source ID      writes DIR/_removed/<hash>.json, a tombstone
    tessera gc DIR --rewrite            makes the shards anew without them, deletes the old bytes
    tessera verify DIR                  says where anything of them is left

A tombstone names the sources and the rows of the shards that hold their samples, so that a reader
leaves them out without looking anything up. It is never changed; what is removed stays removed:
a later build that meets the same file again counts it as `dropped:removed`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.shards.format import canonical_json
from tokenizer.settings import UserError

if TYPE_CHECKING:
    from pipeline.commit import Store

REMOVED = "_removed"
VERSION = 1
_SOURCE_ID = re.compile(r"[0-9a-f]{64}")


def removed_sources(store: Store) -> set[str]:
    """The ids of all sources that were removed from a dataset."""
    return {source for record in _tombstones(store) for source in record["source_ids"]}


def write_tombstone(store: Store, source_ids: Iterable[str], rows: dict[str, list[int]]) -> str:
    """Publishes that sources are removed, with the rows of their samples by shard; its name."""
    record = {"version": VERSION, "source_ids": sorted(source_ids), "rows": rows}
    content = canonical_json(record) + b"\n"
    name = f"{REMOVED}/{hashlib.sha256(content).hexdigest()[:24]}.json"
    store.storage.create(name, content)
    return name


def check_source_id(text: str) -> str:
    """The id, when it is one; UserError otherwise."""
    if not _SOURCE_ID.fullmatch(text):
        raise UserError(
            f"{text!r} is no source id: 64 hexadecimal digits, the sha256 of the file "
            "(column source_id of manifest.parquet, or `sha256sum FILE`)"
        )
    return text


def _tombstones(store: Store) -> list[dict]:
    records = []
    for name in store.storage.names(REMOVED):
        record = json.loads(store.storage.read(f"{REMOVED}/{name}"))
        if record.get("version") != VERSION:
            raise UserError(f"{store.root}/{REMOVED}/{name}: unknown version; update Tessera")
        records.append(record)
    return records
