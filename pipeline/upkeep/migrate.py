"""Migrate: a dataset of format version 1 becomes one of this version, in place.

    done = migrate("runs/old/data")
    done.from_version, done.num_shards, done.num_samples

The tars stay as they are, byte for byte, and are hashed on the way. What is said about them is made
anew from them: sidecars, statistics in the commits, the manifest's columns `row` and `code_key`,
the index, `shards.json`, `_SUCCESS`. Every step can be repeated: whatever kills it, the same
command goes on, and ends in the same bytes.

A code key says that later builds may copy the codes. It is given only where the commit's
fingerprint proves that the settings, the tokenizer and the torch that are here made them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clip import KEPT, Clip, clips_from_parquet
from pipeline.commit import COMMITS, PIXELS_FOLDER, Part, Store
from pipeline.finalize import MANIFEST_FILE, TOKENIZER_FILES, publish
from pipeline.shards.format import (
    FORMAT_VERSION,
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    canonical_json,
    parse_declaration,
)
from pipeline.shards.sidecar import clip_digest, code_key_words, pack_sidecar
from pipeline.shards.tarindex import TarIndex, index_tar
from pipeline.statistics import Tally
from pipeline.storage import is_remote, sha256_of
from pipeline.tokenize import TokenizeJob
from pipeline.upkeep.version1 import VERSION as OLDEST_VERSION
from pipeline.upkeep.version1 import making, raised
from tokenizer.settings import UserError

MARKER = "migrating.json"


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What became of one dataset folder; `from_version` is FORMAT_VERSION when nothing had to."""

    root: str
    from_version: int
    num_shards: int
    num_samples: int


def migrate(root: str | Path) -> list[Migration]:
    """Brings the dataset in `root`, and its pixel shards where there are any, to this version.

    UserError when it is no finished dataset of a version that is known, ShardError when a shard or
    a list of it is damaged; nothing that an older reader reads was changed then.
    """
    if is_remote(root):
        raise UserError(f"{root}: copy the dataset to a disk to migrate it, and back again")
    folders = [Path(root) / PIXELS_FOLDER, Path(root)]
    if not (folders[1] / SHARDS_FILE).exists():
        raise UserError(f"{root}: no dataset here (no {SHARDS_FILE})")
    return [_migrate(each) for each in folders if (each / SHARDS_FILE).exists()]


def _migrate(folder: Path) -> Migration:
    where = f"{folder}/{SHARDS_FILE}"
    version, token_sets, buckets, shards = _declared((folder / SHARDS_FILE).read_bytes(), where)
    interrupted = (folder / MARKER).exists()
    done = Migration(
        root=str(folder),
        from_version=OLDEST_VERSION if interrupted else version,
        num_shards=len(shards),
        num_samples=sum(each.num_samples for each in shards),
    )
    if version == FORMAT_VERSION and not interrupted:
        return done
    if not interrupted and not (folder / SUCCESS_FILE).exists():
        raise UserError(
            f"{folder}: this build of version {version} is not finished; finish it with the "
            "version that began it, or build it anew in another folder"
        )
    if not (folder / MANIFEST_FILE).exists():
        raise UserError(f"{folder}: no {MANIFEST_FILE}; was it copied with the shards?")
    store = Store(folder)
    store.prepare()
    store.storage.put(MARKER, canonical_json({"from": OLDEST_VERSION, "to": FORMAT_VERSION}))
    commits = _commits(store)
    clips = _manifest(store)
    by_shard: dict[str, dict[str, Clip]] = {}
    for clip in clips:
        if clip.outcome == KEPT:
            by_shard.setdefault(clip.shard, {})[clip.key] = clip
    made = making(folder, token_sets[0])
    results = []
    placed: dict[str, Clip] = {}
    for entry in shards:
        index = _checked_index(store, folder, entry)
        bucket = next(each for each in buckets if each.name == entry.bucket)
        record = commits.get(entry.path)
        proved = made and record and record["result"]["fingerprint"] == made.fingerprint
        job = made.job if made and proved else None
        rows = _rows(by_shard.pop(entry.path, {}), index, entry, folder, job)
        placed |= {clip.clip_id: clip for clip in rows}
        results.append(_result(store, folder, entry, bucket, token_sets[0], index, rows, record))
    if by_shard:
        raise ShardError(f"{folder}/{MANIFEST_FILE}: {len(by_shard)} shards of it are undeclared")
    clips = [placed[clip.clip_id] if clip.outcome == KEPT else clip for clip in clips]
    tokenizer = folder / "tokenizer"
    complete = all((tokenizer / name).exists() for name in TOKENIZER_FILES)
    publish(store, clips, results, buckets, {"tokenizer": tokenizer} if complete else {})
    store.storage.delete(MARKER)
    return done


def _declared(
    text: bytes, where: str
) -> tuple[int, list[TokenSet], list[Bucket], list[ShardEntry]]:
    """(version, token sets, buckets, shards) of a `shards.json` of any known version."""
    try:
        values = json.loads(text.decode())
        version = values["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{where}: not a valid shard list ({error})") from None
    if version == OLDEST_VERSION:
        text = raised(values, where)
    elif version != FORMAT_VERSION:
        raise UserError(
            f"{where}: format version {str(version)[:20]}; this Tessera knows {OLDEST_VERSION} "
            f"to {FORMAT_VERSION}"
        )
    _, token_sets, buckets, shards = parse_declaration(text, where)
    return version, token_sets, buckets, shards


def _manifest(store: Store) -> list[Clip]:
    try:
        return clips_from_parquet(store.storage.read(MANIFEST_FILE))
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are ValueErrors
        raise ShardError(f"{store.root}/{MANIFEST_FILE}: cannot be read ({error})") from None


def _commits(store: Store) -> dict[str, dict[str, Any]]:
    """The commits that made shards, by the path of their tar; none where there was no build."""
    found = {}
    for unit in sorted(store.committed()):
        if unit.startswith("tokenize-"):
            try:
                record = store.read(unit)
                if record["result"]["parts"]:
                    found[record["result"]["parts"][0]["path"]] = record
            except (ValueError, KeyError, TypeError, IndexError):
                raise ShardError(f"{store.root}/{COMMITS}/{unit}.json: a damaged commit") from None
    return found


def _checked_index(store: Store, folder: Path, entry: ShardEntry) -> TarIndex:
    """The samples of a tar, whose bytes are those that were declared."""
    path = folder / entry.path
    try:
        digest = sha256_of(store.storage, entry.path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
    if digest != entry.sha256:
        raise ShardError(f"{path}: damaged (sha256 {digest[:12]}, declared {entry.sha256[:12]})")
    index = index_tar(path)
    if len(index.keys) != entry.num_samples:
        raise ShardError(f"{path}: {len(index.keys)} samples, declared {entry.num_samples}")
    return index


def _result(
    store: Store,
    folder: Path,
    entry: ShardEntry,
    bucket: Bucket,
    token_set: TokenSet,
    index: TarIndex,
    rows: Sequence[Clip],
    record: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a commit of this version says of the shard; its sidecar and its commit are written."""
    samples = index.sidecar.samples.copy()
    samples["clip"] = [clip_digest(clip.view_group) for clip in rows]
    samples["code_key"] = [code_key_words(clip.code_key or None) for clip in rows]
    sidecar = pack_sidecar(
        index.sidecar.members, samples, index.sidecar.places, index.sidecar.tar_bytes
    )
    tar = Part(entry.path, entry.sha256, entry.size_bytes)
    parts = [asdict(tar), asdict(store.write_beside(tar, ".idx", sidecar))]
    schedule = bucket.schedule
    result = record["result"] if record else {"failed": {}}
    result |= {
        "parts": parts,
        "split": entry.split,
        "bucket": entry.bucket,
        "schedule": schedule.to_list() if schedule else None,
        "token_set": asdict(token_set),
        "num_samples": entry.num_samples,
        "statistics": _statistics(folder / entry.path, index, bucket, token_set, result["failed"]),
    }
    if record is not None:
        content = canonical_json({**record, "result": result}) + b"\n"
        store.storage.put(f"{COMMITS}/{record['unit']}.json", content)
    return result


def _statistics(
    path: Path,
    index: TarIndex,
    bucket: Bucket,
    token_set: TokenSet,
    failed: dict[str, str],
) -> dict[str, Any]:
    """The statistics of a shard, from its samples."""
    members, places = index.sidecar.members, index.sidecar.places
    if set(members) != {token_set.member, "json"}:
        raise ShardError(f"{path}: members {', '.join(members)}, not {token_set.member} and json")
    tally = Tally()
    schedule = bucket.schedule
    data = np.memmap(path, dtype=np.uint8, mode="r")
    arrays = index.arrays[token_set.member]
    for row, key in enumerate(index.keys):
        payloads = {}
        for member, place in zip(members, places[row]):
            start = int(place["offset"])
            payloads[member] = data[start : start + int(place["length"])]
        header = arrays.headers[arrays.header_of[row]]
        array = payloads[token_set.member][header.header_bytes :].view(header.dtype)
        try:
            metadata = json.loads(payloads["json"].tobytes().decode())
            tally.add_sample(
                metadata,
                array if schedule else None,
                schedule.scale_of_token if schedule else None,
                token_set.codebook_size,
                array.nbytes,
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path}: sample {key} is not sound ({error})") from None
    tally.add_outcome(KEPT, len(index.keys))
    for outcome, count in sorted(Counter(failed.values()).items()):
        tally.add_outcome(outcome, count)
    return tally.to_json()


def _rows(
    clips: dict[str, Clip],
    index: TarIndex,
    entry: ShardEntry,
    folder: Path,
    job: TokenizeJob | None,
) -> list[Clip]:
    """The manifest's rows of a shard's samples, in its order, with their places and code keys."""
    if set(clips) != set(index.keys):
        raise ShardError(f"{folder}/{MANIFEST_FILE}: lists other samples than are in {entry.path}")
    return [
        replace(clips[key], row=row, code_key=job.code_key(clips[key]) if job else "")
        for row, key in enumerate(index.keys)
    ]
