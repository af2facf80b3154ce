"""Removal: sources that may no longer be used, honoured from the moment they are named.

    tessera remove DIR --source ID      writes DIR/_removed/<hash>.json, a tombstone
    tessera gc DIR --rewrite            makes the shards anew without them, deletes the old bytes
    tessera verify DIR                  says where anything of them is left

A tombstone names the sources and the rows of the shards that hold their samples, so that a reader
leaves them out without looking anything up. It is never changed; what is removed stays removed:
a later build that meets the same file again counts it as `dropped:removed`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clip import Clip
from pipeline.commit import Store, with_pixels
from pipeline.shards.removal import REMOVED_FOLDER, Tombstone, read_tombstones
from pipeline.shards.table import read_table
from tokenizer.settings import UserError

_SOURCE_ID, _DIGITS = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{8,63}")

Rows = dict[str, list[int]]
"""Row numbers by the path of their shard."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a call of `remove_sources` did; the counts are of what it hid, now or earlier."""

    new_sources: tuple[str, ...]
    num_sources: int
    num_samples: int
    num_shards: int


def remove_sources(root: str | Path, source_ids: Iterable[str]) -> Removal:
    """Hides all samples of these sources, at once and for good; a second call changes nothing.

    UserError, with nothing written, when an id is unknown to the dataset. In a dataset that is not
    finished the next build leaves the sources out.
    """
    store, *pixels = with_pixels(root)
    wanted = {check_source_id(each) for each in source_ids}
    before = removed_sources(store)
    unknown = sorted(wanted - before - set().union(*_known_sources(store).values()))
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if unknown[3:] else "")
        raise UserError(f"{store.root}: no source {shown}; nothing was removed")
    for each in (store, *pixels):
        _hide(each, wanted)
    rows = rows_of(store, wanted)
    return Removal(
        new_sources=tuple(sorted(wanted - before)),
        num_sources=len(wanted),
        num_samples=sum(map(len, rows.values())),
        num_shards=len(rows),
    )


def find_sources(root: str | Path, names: Iterable[str]) -> list[str]:
    """Source ids by id, by the first digits of one (8 or more), or by uri.

    UserError when a name fits no source of the dataset, or more than one.
    """
    store, *_ = with_pixels(root)
    known = _known_sources(store)
    found = []
    for name in names:
        if _SOURCE_ID.fullmatch(name):
            found.append(name)
            continue
        fits = known.get(name, set())
        if not fits and _DIGITS.fullmatch(name):
            fits = {each for ids in known.values() for each in ids if each.startswith(name)}
        if len(fits) != 1:
            what = f"{len(fits)} sources are" if fits else "no source is"
            raise UserError(
                f"{store.root}: {what} named {name!r}; give the sha256 of the file (column "
                "source_id of manifest.parquet, or `sha256sum FILE`), its first 8 digits or more, "
                "or its uri; nothing was removed"
            )
        found += fits
    return found


def removed_sources(store: Store) -> set[str]:
    """The ids of all sources that were removed from a dataset."""
    return {source for each in _tombstones(store) for source in each.source_ids}


def hidden_rows(store: Store) -> dict[str, set[int]]:
    """The rows that readers leave out, by shard."""
    hidden: dict[str, set[int]] = {}
    for each in _tombstones(store):
        for shard, rows in each.rows.items():
            hidden.setdefault(shard, set()).update(rows)
    return hidden


def rows_of(store: Store, source_ids: Collection[str]) -> Rows:
    """Where the manifest says that the samples of these sources lie."""
    try:
        columns = ["source_id", "shard", "row"]
        table = _read_columns(store, "manifest.parquet", columns)
    except FileNotFoundError:
        return {}
    mask = pc.and_(
        pc.is_in(table["source_id"], pa.array(sorted(source_ids), pa.string())),
        pc.greater_equal(table["row"], 0),
    )
    chosen = table.filter(mask)
    rows: Rows = {}
    for shard, row in zip(chosen["shard"].to_pylist(), chosen["row"].to_pylist()):
        rows.setdefault(shard, []).append(row)
    return {shard: sorted(numbers) for shard, numbers in sorted(rows.items())}


def write_tombstone(store: Store, source_ids: Iterable[str], rows: Rows) -> str:
    """Publishes that sources are removed, with the rows of their samples by shard; its name."""
    name, content = Tombstone(tuple(source_ids), rows).to_file()
    store.storage.create(f"{REMOVED_FOLDER}/{name}", content)
    return f"{REMOVED_FOLDER}/{name}"


def refuse_removed(store: Store, clips: Iterable[Clip]) -> None:
    """UserError when a kept clip is of a source that was removed after the plan was made."""
    removed = removed_sources(store)
    if removed and any(clip.outcome == "kept" and clip.source_id in removed for clip in clips):
        raise UserError(
            f"{store.root}: sources of this build were removed after it was planned; "
            "run `tessera build` again, which leaves them out"
        )


def check_source_id(text: str) -> str:
    """The id, when it is one; UserError otherwise."""
    if not _SOURCE_ID.fullmatch(text):
        raise UserError(
            f"{text!r} is no source id: 64 hexadecimal digits, the sha256 of the file "
            "(column source_id of manifest.parquet, or `sha256sum FILE`)"
        )
    return text


def _hide(store: Store, wanted: set[str]) -> None:
    """Writes tombstones until they cover every sample: a build may end while we write."""
    while True:
        missing = without_rows(rows_of(store, wanted), hidden_rows(store))
        if not missing and wanted <= removed_sources(store):
            return
        write_tombstone(store, wanted, missing)


def _known_sources(store: Store) -> dict[str, set[str]]:
    """The ids of the sources by their uri."""
    known: dict[str, set[str]] = {}
    for name in ("plan.parquet", "manifest.parquet"):
        try:
            table = _read_columns(store, name, ["source_id", "uri"])
        except FileNotFoundError:
            continue
        rows = table.group_by(["source_id", "uri"]).aggregate([])
        for source_id, uri in zip(rows["source_id"].to_pylist(), rows["uri"].to_pylist()):
            known.setdefault(uri, set()).add(source_id)
    if not known:
        raise UserError(f"{store.root}: no dataset of a build (neither plan nor manifest)")
    return known


def _read_columns(store: Store, name: str, columns: list[str]) -> pa.Table:
    try:
        return read_table(store.storage.read(name), columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{store.root}/{name}: cannot be read ({error}); see `tessera verify {store.root}`"
        ) from None


def without_rows(rows: Rows, hidden: dict[str, set[int]]) -> Rows:
    left = {
        shard: [row for row in numbers if row not in hidden.get(shard, ())]
        for shard, numbers in rows.items()
    }
    return {shard: numbers for shard, numbers in left.items() if numbers}


def _tombstones(store: Store) -> Iterator[Tombstone]:
    storage = store.storage
    names = storage.names(REMOVED_FOLDER)
    return (each for _, each in read_tombstones(names, storage.read, storage.root))
