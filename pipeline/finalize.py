"""Finalize: commits become a dataset that can be opened.

Reads the `result` of every commit, and nothing else, so the files it writes do not depend on where
the work ran or how often it was interrupted: `manifest.parquet` (one row per clip ever considered),
`index.bin`, `shards.json`, the tokenizer, `report.html`, and last `_SUCCESS`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from pipeline.annotate import accounts
from pipeline.clip import Clip, clips_to_parquet, make_buckets
from pipeline.commit import Store
from pipeline.config import BuildConfig, parse_bucket
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
from pipeline.tokenize import ClipUnit
from tokenizer.scales import Schedule
from tokenizer.settings import UserError

MANIFEST_FILE = "manifest.parquet"


def finalize(
    config: BuildConfig,
    store: Store,
    selection: Sequence[Clip],
    units: Sequence[ClipUnit],
    tokenizer_dir: Path | None,
) -> dict[str, int]:
    """Writes the dataset's files and returns its accounts; UserError when units are missing."""
    missing = [unit.id for unit in units if not store.has(unit.id)]
    if missing:
        raise UserError(f"{store.root}: {len(missing)} shards are not built; run `tessera build`")
    results = [store.read(unit.id)["result"] for unit in units]
    clips = _with_shards(selection, units, results)
    totals = accounts(Counter(clip.outcome for clip in clips))
    if not totals["n_kept"]:
        raise UserError(
            f"{store.root}: no clip was kept ({totals['n_dropped']} dropped, "
            f"{totals['n_error']} unreadable); see `tessera stats {store.root}`"
        )
    (store.root / SUCCESS_FILE).unlink(missing_ok=True)
    store.write_file(MANIFEST_FILE, lambda file: clips_to_parquet(clips, file))
    index, shards = _index(store, results)
    store.write_file(INDEX_FILE, _bytes_writer(index))
    declaration = dump_declaration(
        [_token_set(results)], _buckets(config, results), shards
    ).encode()
    store.write_file(SHARDS_FILE, _bytes_writer(declaration))
    if tokenizer_dir is not None:
        _copy_tokenizer(tokenizer_dir, store)
    summary = canonical_json({**totals, "num_shards": len(shards)})
    store.write_file(SUCCESS_FILE, _bytes_writer(summary + b"\n"))
    return totals


def _bytes_writer(data: bytes) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(data)

    return write


def _with_shards(
    selection: Sequence[Clip], units: Sequence[ClipUnit], results: Sequence[dict[str, Any]]
) -> list[Clip]:
    """The selection with each kept clip's shard, or the error that tokenize met."""
    placed: dict[str, tuple[str, str]] = {}
    for unit, result in zip(units, results):
        shard = result["parts"][0]["path"] if result["parts"] else ""
        for clip in unit.clips:
            outcome = result["failed"].get(clip.clip_id, clip.outcome)
            placed[clip.clip_id] = (outcome, shard if outcome == clip.outcome else "")
    return [
        replace(clip, outcome=placed[clip.clip_id][0], shard=placed[clip.clip_id][1])
        if clip.clip_id in placed
        else clip
        for clip in selection
    ]


def _index(store: Store, results: Sequence[dict[str, Any]]) -> tuple[bytes, list[ShardEntry]]:
    """All sidecars in one, and the shards that they belong to."""
    index = bytearray()
    shards = []
    for result in results:
        if not result["parts"]:
            continue
        tar, sidecar = result["parts"]
        data = (store.root / sidecar["path"]).read_bytes()
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


def _token_set(results: Sequence[dict[str, Any]]) -> TokenSet:
    declared = {canonical_json(result["token_set"]): result["token_set"] for result in results}
    if len(declared) != 1:
        raise UserError("shards of different tokenizers cannot be one dataset")
    return TokenSet(**next(iter(declared.values())))


def _buckets(config: BuildConfig, results: Sequence[dict[str, Any]]) -> list[Bucket]:
    schedules = {result["bucket"]: result["schedule"] for result in results}
    buckets = make_buckets(parse_bucket(text) for text in config.clips.buckets)
    return [
        replace(
            bucket,
            schedule=Schedule.from_list(schedules[bucket.name]) if schedules[bucket.name] else None,
        )
        for bucket in buckets
        if bucket.name in schedules
    ]


def _copy_tokenizer(source: Path, store: Store) -> None:
    """The tokenizer travels with its codes; a folder that is already in place stays."""
    target = store.root / "tokenizer"
    if source.resolve() == target.resolve():
        return
    target.mkdir(exist_ok=True)
    for name in ("model.safetensors", "tokenizer.json"):
        temporary = store.root / "tmp" / f"{name}.copy"
        shutil.copyfile(source / name, temporary)
        temporary.replace(target / name)
