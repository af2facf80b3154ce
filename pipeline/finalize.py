"""Finalize: commits become a dataset that can be opened.

Reads the `result` of every commit, and nothing else, so the files it writes do not depend on where
the work ran or how often it was interrupted: `manifest.parquet` (one row per clip ever considered),
`index.bin`, `shards.json`, `statistics.json`, the tokenizers, and last `_SUCCESS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.annotate import accounts
from pipeline.clip import Clip, clips_to_parquet, make_buckets
from pipeline.commit import Store
from pipeline.config import BuildConfig, parse_bucket
from pipeline.removal import refuse_removed
from pipeline.shard_draft import token_sets_of
from pipeline.shards.format import (
    INDEX_FILE,
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    TokenSet,
    canonical_json,
    dump_declaration,
)
from pipeline.statistics import merge
from pipeline.storage import is_remote, sha256_of
from pipeline.tokenize import ClipUnit
from tokenizer.settings import UserError

MANIFEST_FILE = "manifest.parquet"
STATISTICS_FILE = "statistics.json"
TOKENIZER_FILES = ("model.safetensors", "tokenizer.json")
_THREADS = 8


def finalize(
    config: BuildConfig,
    store: Store,
    selection: Sequence[Clip],
    units: Sequence[ClipUnit],
    code_key: Callable[[Clip], str],
    tokenizers: Mapping[str, Path],
) -> dict[str, int]:
    """Writes the dataset's files and returns its accounts; UserError when units are missing.

    `tokenizers` says, by the folder of the dataset where each belongs, where it is now.
    """
    committed = store.committed()
    missing = [unit.id for unit in units if unit.id not in committed]
    if missing:
        raise UserError(f"{store.root}: {len(missing)} shards are not built; run `tessera build`")
    with ThreadPoolExecutor(_THREADS) as pool:
        results = [record["result"] for record in pool.map(store.read, (u.id for u in units))]
    there = set(store.storage.names("parts"))
    lost = [
        part["path"]
        for result in results
        for part in result["parts"]
        if part["path"].removeprefix("parts/") not in there
    ]
    if lost:
        raise UserError(
            f"{store.root}: {len(lost)} committed files are gone, such as {lost[0]}; "
            f"`tessera verify {store.root} --repair`, then run the build again"
        )
    clips = _with_shards(selection, units, results, code_key)
    return publish(store, clips, results, _buckets(config, results), tokenizers)


def publish(
    store: Store,
    clips: Sequence[Clip],
    results: Sequence[dict[str, Any]],
    buckets: Sequence[Bucket],
    tokenizers: Mapping[str, Path],
) -> dict[str, int]:
    """Makes a dataset of rows and of the commits whose shards they name; returns its accounts.

    `_SUCCESS` seals the other files with their hashes. UserError when nothing was kept, or when a
    source was removed meanwhile.
    """
    totals = accounts(Counter(clip.outcome for clip in clips))
    if not totals["n_kept"]:
        raise UserError(
            f"{store.root}: no clip was kept ({totals['n_dropped']} dropped, "
            f"{totals['n_error']} unreadable); see `tessera stats {store.root}`"
        )
    store.storage.delete(SUCCESS_FILE)
    store.write_file(MANIFEST_FILE, lambda file: clips_to_parquet(clips, file))
    index, shards = _index(store, results)
    store.storage.put(INDEX_FILE, index)
    declaration = dump_declaration(_token_sets(store, results), buckets, shards)
    store.storage.put(SHARDS_FILE, declaration.encode())
    statistics = merge(*(result["statistics"] for result in results))
    store.storage.put(STATISTICS_FILE, canonical_json(statistics) + b"\n")
    for folder, source in tokenizers.items():
        _copy_tokenizer(source, store, folder)
    refuse_removed(store, clips)  # after the list is written: `remove` looks at it once more
    sealed = [MANIFEST_FILE, INDEX_FILE, SHARDS_FILE, STATISTICS_FILE]
    sealed += [f"{folder}/{name}" for folder in tokenizers for name in TOKENIZER_FILES]
    hashes = {name: sha256_of(store.storage, name) for name in sealed}
    summary = {**totals, "num_shards": len(shards), "sha256": hashes}
    store.storage.put(SUCCESS_FILE, canonical_json(summary) + b"\n")
    return totals


def _with_shards(
    selection: Sequence[Clip],
    units: Sequence[ClipUnit],
    results: Sequence[dict[str, Any]],
    code_key: Callable[[Clip], str],
) -> list[Clip]:
    """The selection with each kept clip's place, or the error that tokenize met."""
    placed: dict[str, Clip] = {}
    for unit, result in zip(units, results):
        shard = result["parts"][0]["path"] if result["parts"] else ""
        row = 0
        for clip in unit.clips:
            if clip.clip_id in result["failed"]:
                placed[clip.clip_id] = replace(clip, outcome=result["failed"][clip.clip_id])
                continue
            placed[clip.clip_id] = replace(clip, shard=shard, row=row, code_key=code_key(clip))
            row += 1
    return [placed.get(clip.clip_id, clip) for clip in selection]


def _index(store: Store, results: Sequence[dict[str, Any]]) -> tuple[bytes, list[ShardEntry]]:
    """All sidecars in one, and the shards that they belong to."""
    index = bytearray()
    shards = []
    for result in results:
        if not result["parts"]:
            continue
        tar, sidecar = result["parts"]
        data = store.storage.read(sidecar["path"])
        shards.append(
            ShardEntry(
                path=tar["path"],
                sha256=tar["sha256"],
                size_bytes=tar["size_bytes"],
                num_samples=result["num_samples"],
                bucket=result["bucket"],
                split=result["split"],
                index_offset=len(index),
                index_bytes=len(data),
            )
        )
        index += data
    return bytes(index), shards


def _token_sets(store: Store, results: Sequence[dict[str, Any]]) -> list[TokenSet]:
    declared = {tuple(each for each, _ in token_sets_of(result)) for result in results}
    if len(declared) != 1:
        found = " and ".join(
            sorted(", ".join(str(each.tokenizer) for each in sets) for sets in declared)
        )
        raise UserError(
            f"{store.root}: shards of different tokenizers, {found}; use one folder each"
        )
    return list(next(iter(declared)))


def _buckets(config: BuildConfig, results: Sequence[dict[str, Any]]) -> list[Bucket]:
    laid_out = {result["bucket"]: token_sets_of(result) for result in results}
    buckets = make_buckets(parse_bucket(text) for text in config.clips.buckets)
    return [
        replace(
            bucket,
            schedule=laid_out[bucket.name][0][1],
            schedules={
                each.name: schedule
                for each, schedule in laid_out[bucket.name][1:]
                if schedule is not None
            },
        )
        for bucket in buckets
        if bucket.name in laid_out
    ]


def _copy_tokenizer(source: Path, store: Store, folder: str) -> None:
    """A tokenizer travels with its codes; a folder that is already in place stays."""
    if not is_remote(store.root) and source.resolve() == (Path(store.root) / folder).resolve():
        return
    for name in TOKENIZER_FILES:
        store.storage.put(f"{folder}/{name}", (source / name).read_bytes())
