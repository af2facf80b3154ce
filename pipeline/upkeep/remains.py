"""Remains: where anything of removed sources is left in a dataset folder.

    left = find_remains(store, removed_sources(store), files)
    left["parts/train-t9_h64_w64-1f0c9a.tar"]      # "12 samples"

Everything that a build leaves is looked through, whether a commit names it or not: shards by the
names of their samples, tables by their source ids, captions by their clips. What cannot be read
cannot be cleared of it, and is named too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit import COMMITS, Store
from pipeline.inspection.report import REPORT_FILE
from pipeline.shards.format import ShardError
from pipeline.shards.table import read_table
from pipeline.shards.tarwalk import open_tar, walk_tar
from pipeline.storage import local_file

_THREADS = 8
_ID_DIGITS = 16
"""Of the source's id, at the beginning of each sample's name."""


def find_remains(store: Store, removed: Collection[str], files: Iterable[str]) -> dict[str, str]:
    """What is left of these sources, by file; empty when nothing is."""
    if not removed:
        return {}
    files = sorted(files)
    captions = [name for name in files if _is_part(name, ".json")]
    clip_ids = _clip_ids_of_others(store, removed, files) if captions else set()

    def look(name: str) -> tuple[str, str]:
        try:
            return name, _found(store, name, removed, clip_ids)
        except FileNotFoundError:
            return name, ""
        except (ShardError, pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            return name, f"cannot be read ({error})"

    with ThreadPoolExecutor(_THREADS) as pool:
        found = {name: what for name, what in pool.map(look, files) if what}
    if REPORT_FILE in files and any(name.endswith(".parquet") for name in found):
        found[REPORT_FILE] = "pictures and captions, as long as the tables have them"
    return found


def _found(store: Store, name: str, removed: Collection[str], clip_ids: Collection[str]) -> str:
    if name.startswith("parts/") and name.endswith(".tar"):
        short = {source[:_ID_DIGITS] for source in removed}
        with local_file(store.storage, name) as path, open_tar(path) as tar:
            count = sum(each[:_ID_DIGITS] in short for each in walk_tar(tar).names)
        return f"{count} members" if count else ""
    if name.endswith(".parquet"):
        count = _rows_of(store, name, removed)
        return f"{count} rows" if count else ""
    if _is_part(name, ".json"):
        captions = json.loads(store.storage.read(name))["captions"]
        count = sum(clip_id not in clip_ids for clip_id in captions)
        return f"{count} captions of clips that are not in any table" if count else ""
    if name.startswith(f"{COMMITS}/annotate-"):
        scanned = json.loads(store.storage.read(name))["result"].get("scanned", ())
        count = len(set(scanned) & set(removed))
        return f"{count} ids of scanned files" if count else ""
    if name.startswith("tmp/"):
        return "a file on its way in, which may hold anything"
    return ""


def _rows_of(store: Store, name: str, removed: Collection[str]) -> int:
    """Rows that say more of a removed source than that it was removed."""
    table = read_table(store.storage.read(name))
    if "source_id" not in table.schema.names:
        return 0
    chosen = table.filter(pc.is_in(table["source_id"], pa.array(sorted(removed), pa.string())))
    kinds = (
        ("outcome", "dropped:removed")
        if "outcome" in table.schema.names
        else (
            "skipped",
            "removed",
        )
    )
    return sum(row[kinds[0]] != kinds[1] or bool(row["uri"]) for row in chosen.to_pylist())


def _clip_ids_of_others(store: Store, removed: Collection[str], files: Iterable[str]) -> set[str]:
    """The clips that some table lists under a source that was not removed."""
    known: set[str] = set()
    for table in _tables(store, files):
        others = pc.invert(pc.is_in(table["source_id"], pa.array(sorted(removed), pa.string())))
        known.update(table.filter(others)["clip_id"].to_pylist())
    return known


def _tables(store: Store, files: Iterable[str]) -> Iterator[pa.Table]:
    for name in files:
        if name.endswith(".parquet"):
            try:
                yield read_table(store.storage.read(name), ["source_id", "clip_id"])
            except (pa.ArrowException, OSError):
                continue  # of no clips, or named by `_found`, where it counts


def _is_part(name: str, suffix: str) -> bool:
    return name.startswith("parts/") and name.endswith(suffix)
