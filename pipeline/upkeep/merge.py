"""Merge: several datasets of the same token sets become one. `tessera merge A B -o C`.

    merge(["runs/monday", "runs/tuesday"], "runs/both")

Shards are linked where the file system can, else copied, and checked by their hashes; their commits
travel, so the result can be verified, merged, and lend its scans and codes to later builds. Samples
that several datasets have are taken from the first, and shards that hold such samples, or samples
of removed sources, are written anew without them. Stopped at any point and run again, it ends in
the same bytes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.clip import Clip, clips_from_parquet
from pipeline.commit import MERGE_FILE, Part, Store
from pipeline.finalize import MANIFEST_FILE, TOKENIZER_FILES, publish
from pipeline.inspection.report import write_report
from pipeline.progress import Progress
from pipeline.removal import removed_sources, write_tombstone
from pipeline.shards.format import (
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    TokenSet,
    canonical_json,
    parse_declaration,
    tokenizer_folders,
)
from pipeline.storage import LocalStorage, is_remote, light_copy, local_file, sha256_of
from pipeline.upkeep.excerpt import excerpt
from pipeline.upkeep.remains import find_remains
from pipeline.upkeep.sweep import live_units, sound_results
from pipeline.upkeep.union import Union, split_conflict, unite
from tokenizer.settings import UserError


@dataclass(frozen=True, kw_only=True)
class _Input:
    """A finished dataset that goes into a merge."""

    store: Store
    fingerprint: str
    token_sets: list[TokenSet]
    buckets: list[Bucket]
    shards: list[ShardEntry]
    clips: list[Clip]
    results: dict[str, dict[str, Any]]
    removed: frozenset[str]


def merge(roots: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Makes a finished dataset in `out` of those in `roots`, the first first; its accounts.

    UserError when one is not finished or was made by no build, when token sets or schedules
    differ, when a source or a held-out caption is in other splits, or when `out` holds something
    else.
    """
    inputs = [_read_input(Store(root)) for root in roots]
    removed = frozenset[str]().union(*(each.removed for each in inputs))
    _check_alike(inputs)
    _check_splits(inputs, removed)
    target = _begin(inputs, out)
    union = unite([each.clips for each in inputs], removed)
    if removed:
        write_tombstone(target, removed, {})
    places: dict[tuple[int, str], str] = {}
    results = []
    progress = Progress()
    with progress.phase("merge", sum(len(each.shards) for each in inputs), 0) as advance:
        for number, each in enumerate(inputs):
            for unit, path in _units_of(each):
                result = _take(each, number, unit, path, union, target)
                if result is not None:
                    results.append(result)
                    if path and result["parts"]:
                        places[number, path] = result["parts"][0]["path"]
                if path:
                    advance()
            _take_annotations(each, removed, target)
    clips = _placed(union, places)
    with tempfile.TemporaryDirectory(prefix="tessera-merge-") as folder:
        tokenizers = _tokenizers(inputs[0], Path(folder))
        totals = publish(target, clips, results, _buckets(inputs, results), tokenizers)
    with light_copy(target.root) as copy:
        report = write_report(copy)
        if is_remote(target.root):
            target.storage.put(report.name, report)
    return totals


def _read_input(store: Store) -> _Input:
    names = store.storage.names("")
    if SUCCESS_FILE not in names or SHARDS_FILE not in names:
        raise UserError(f"{store.root}: not a finished dataset; run `tessera build` to its end")
    if MANIFEST_FILE not in names or not store.committed():
        raise UserError(f"{store.root}: made by no build: it has no manifest and no commits")
    text = store.storage.read(SHARDS_FILE).decode("utf-8", "replace")
    where = f"{store.root}/{SHARDS_FILE}"
    fingerprint, token_sets, buckets, shards = parse_declaration(text, where)
    live = live_units(store)
    return _Input(
        store=store,
        fingerprint=fingerprint,
        token_sets=token_sets,
        buckets=buckets,
        shards=shards,
        clips=clips_from_parquet(store.storage.read(MANIFEST_FILE)),
        results={unit: each for unit, each in sound_results(store).items() if unit in live},
        removed=frozenset(removed_sources(store)),
    )


def _check_alike(inputs: Sequence[_Input]) -> None:
    """The same token sets, and the same schedule in buckets of one name."""
    first = inputs[0]
    buckets: dict[str, tuple[Bucket, _Input]] = {}
    for each in inputs:
        if each.token_sets != first.token_sets:
            said = " and ".join(
                f"{one.store.root} ({', '.join(_named(two) for two in one.token_sets)})"
                for one in (first, each)
            )
            raise UserError(f"different token sets: {said}; only what is alike can be merged")
        for bucket in each.buckets:
            before, other = buckets.setdefault(bucket.name, (bucket, each))
            if before != bucket:
                raise UserError(
                    f"bucket {bucket.name} is laid out differently in {other.store.root} "
                    f"({other.fingerprint[:16]}) and {each.store.root} ({each.fingerprint[:16]})"
                )


def _named(token_set: TokenSet) -> str:
    maker = f"tokenizer {token_set.tokenizer[:16]}" if token_set.tokenizer else "no tokenizer"
    return f"{token_set.name} {token_set.dtype} of {maker}"


def _check_splits(inputs: Sequence[_Input], removed: frozenset[str]) -> None:
    conflict = split_conflict([each.clips for each in inputs], removed)
    if conflict is not None:
        before, first, clip, second = conflict
        is_source = before.source_id == clip.source_id
        what = f"source {clip.source_id}" if is_source else f"caption {clip.caption!r}"
        raise UserError(
            f"{what} is {before.split!r} in {inputs[first].store.root} "
            f"({before.uri}) and {clip.split!r} in {inputs[second].store.root} ({clip.uri}); "
            "build both with one select.val_share and one select.hold_out"
        )


def _begin(inputs: Sequence[_Input], out: str | Path) -> Store:
    """The output, with the note of what it is made of; UserError when it holds something else."""
    target = Store(out)
    if target.root in [each.store.root for each in inputs]:
        raise UserError(f"{out}: is one of the datasets to merge; name a new folder")
    if target.committed() and target.storage.size(MERGE_FILE) is None:
        raise UserError(f"{out}: holds a build already; name a new folder")
    target.prepare()
    made_of = [
        {"fingerprint": each.fingerprint, "removed": sorted(each.removed)} for each in inputs
    ]
    note = canonical_json({"version": 1, "made_of": made_of}) + b"\n"
    if not target.storage.create(MERGE_FILE, note) and target.storage.read(MERGE_FILE) != note:
        raise UserError(f"{out}: holds a merge of other datasets; name a new folder")
    return target


def _units_of(each: _Input) -> list[tuple[str, str]]:
    """(unit, shard) in the order of the shards, then the units that are errors only."""
    by_shard = {
        result["parts"][0]["path"]: unit
        for unit, result in each.results.items()
        if result["phase"] == "tokenize" and result["parts"]
    }
    missing = [entry.path for entry in each.shards if entry.path not in by_shard]
    if missing:
        raise UserError(f"{each.store.root}: no commit names {missing[0]}; see `tessera verify`")
    without = [
        unit
        for unit, result in sorted(each.results.items())
        if result["phase"] == "tokenize" and not result["parts"]
    ]
    units = [(by_shard[entry.path], entry.path) for entry in each.shards]
    return units + [(unit, "") for unit in without]


def _take(
    each: _Input, number: int, unit: str, path: str, union: Union, target: Store
) -> dict[str, Any] | None:
    """Brings what the union takes of a unit to the target; the result of its commit there."""
    result = each.results[unit]
    rows = union.taken.get((number, path), [])
    errors = union.errors[number]
    failed = {
        clip: outcome for clip, outcome in result["failed"].items() if errors.get(clip) == outcome
    }
    if not rows and not failed:
        return None
    if len(rows) < result["num_samples"] or failed != result["failed"]:
        unit = excerpt(each.store, unit, rows, failed, target)
    else:
        _bring(each.store, unit, target)
    return target.read(unit)["result"]


def _take_annotations(each: _Input, removed: frozenset[str], target: Store) -> None:
    """The scans and captions, for later builds; not those that tell of removed sources."""
    names = [name for name in each.store.storage.walk() if not name.endswith(".tar")]
    remains = find_remains(each.store, removed, names)
    for unit, result in each.results.items():
        told = any(part["path"] in remains for part in result["parts"])
        if result["phase"] != "tokenize" and not told:
            _bring(each.store, unit, target)


def _bring(source: Store, unit: str, target: Store) -> None:
    """The parts of a unit, checked, then its commit as it is."""
    if target.has(unit):
        return
    record = source.read(unit)
    for each in record["result"]["parts"]:
        part = Part(**each)
        try:
            sha256 = sha256_of(source.storage, part.path)
        except OSError as error:
            raise UserError(f"{source.root}/{part.path}: cannot be read ({error})") from None
        if sha256 != part.sha256:
            raise UserError(
                f"{source.root}/{part.path}: damaged; see `tessera verify {source.root}`"
            )
        with local_file(source.storage, part.path) as path:
            aside = target.storage.scratch() / secrets.token_hex(12)
            if not isinstance(source.storage, LocalStorage) or not _link(path, aside):
                shutil.copyfile(path, aside)
            target.storage.put(part.path, aside)
            aside.unlink(missing_ok=True)
        if sha256_of(target.storage, part.path) != part.sha256:
            raise UserError(f"{target.root}/{part.path}: not what was written; is the disk sound?")
    target.commit(unit, record["result"], record["run"])


def _link(path: Path, aside: Path) -> bool:
    try:
        os.link(path, aside)
    except OSError:  # another disk, or one without links
        return False
    return True


def _placed(union: Union, places: dict[tuple[int, str], str]) -> list[Clip]:
    """The rows with the shard and row that they have in the merged dataset."""
    row_of = {
        (place, old): new for place, rows in union.taken.items() for new, old in enumerate(rows)
    }
    clips = []
    for number, clip in union.rows:
        place = (number, clip.shard)
        if place in places and clip.row >= 0:
            clip = replace(clip, shard=places[place], row=row_of[place, clip.row])
        clips.append(clip)
    return clips


def _buckets(inputs: Sequence[_Input], results: Sequence[dict[str, Any]]) -> list[Bucket]:
    used = {result["bucket"] for result in results}
    known = {bucket.name: bucket for each in inputs for bucket in each.buckets}
    return [bucket for bucket in known.values() if bucket.name in used]


def _tokenizers(first: _Input, aside: Path) -> dict[str, Path]:
    """The tokenizers' files on this disk, by the folder of the dataset where they belong."""
    folders = tokenizer_folders([each.name for each in first.token_sets])
    found = {}
    for token_set in first.token_sets:
        if token_set.tokenizer is None:
            continue
        folder = folders[token_set.name]
        found[folder] = aside / folder
        found[folder].mkdir(parents=True)
        for name in TOKENIZER_FILES:
            (found[folder] / name).write_bytes(first.store.storage.read(f"{folder}/{name}"))
    return found
