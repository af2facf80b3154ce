"""Migrate: a dataset of format version 1 becomes one of this version, in place.

    done = migrate("runs/old/data")
    done.from_version, done.num_shards, done.num_samples

The tars stay as they are, byte for byte, and are hashed on the way. What is said about them is made
anew from them: sidecars, statistics in the commits, the manifest's columns `row` and `code_key`
(unknown, so that no later build copies these codes), the index, `shards.json`, `_SUCCESS`. Every
step can be repeated: whatever kills it, the same command goes on, and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
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
from pipeline.shards.sidecar import clip_digest, pack_sidecar
from pipeline.shards.tarindex import TarIndex, index_tar
from pipeline.statistics import Tally
from pipeline.storage import is_remote, sha256_of
from tokenizer.settings import UserError

MARKER = "migrating.json"
OLDEST_VERSION = 1
_VIEW = re.compile(r"([0-9a-f]{16}_\d{12}_\d{12})_\d+")


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
    done = Migration(
        root=str(folder),
        from_version=version,
        num_shards=len(shards),
        num_samples=sum(each.num_samples for each in shards),
    )
    interrupted = (folder / MARKER).exists()
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
    results = []
    rows: dict[str, dict[str, int]] = {}
    for entry in shards:
        index = _checked_index(store, folder, entry)
        rows[entry.path] = {key: row for row, key in enumerate(index.keys)}
        bucket = next(each for each in buckets if each.name == entry.bucket)
        record = commits.get(entry.path)
        results.append(_result(store, folder, entry, bucket, token_sets[0], index, record))
    clips = clips_from_parquet(store.storage.read(MANIFEST_FILE))
    placed = [_placed(clip, rows, folder) for clip in clips]
    tokenizer = folder / "tokenizer"
    complete = all((tokenizer / name).exists() for name in TOKENIZER_FILES)
    publish(store, placed, results, buckets, tokenizer if complete else None)
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
        text = _raised(values, where)
    elif version != FORMAT_VERSION:
        raise UserError(
            f"{where}: format version {str(version)[:20]}; this Tessera knows {OLDEST_VERSION} "
            f"to {FORMAT_VERSION}"
        )
    _, token_sets, buckets, shards = parse_declaration(text, where)
    return version, token_sets, buckets, shards


def _raised(values: dict[str, Any], where: str) -> bytes:
    """The declaration of version 1 as one of version 2: buckets have further schedules."""
    try:
        contents = [[each["split"], each["bucket"], each["sha256"]] for each in values["shards"]]
        identity = [values["token_sets"], values["buckets"], contents]
        if values["fingerprint"] != hashlib.sha256(canonical_json(identity)).hexdigest():
            raise ShardError(f"{where}: its fingerprint is not that of what it declares")
        buckets = [{**each, "schedules": {}} for each in values["buckets"]]
        identity = [values["token_sets"], buckets, contents]
        raised = {
            **values,
            "format_version": 2,
            "buckets": buckets,
            "fingerprint": hashlib.sha256(canonical_json(identity)).hexdigest(),
        }
        return canonical_json(raised)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{where}: not a valid shard list ({error})") from None


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
    record: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a commit of this version says of the shard; its sidecar and its commit are written."""
    samples = index.sidecar.samples.copy()
    samples["clip"] = [clip_digest(_view_group(key)) for key in index.keys]
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


def _placed(clip: Clip, rows: dict[str, dict[str, int]], folder: Path) -> Clip:
    """A row of the manifest, with its sample's place."""
    if clip.outcome != KEPT:
        return clip
    try:
        return replace(clip, row=rows[clip.shard][clip.key])
    except KeyError:
        raise ShardError(
            f"{folder}/{MANIFEST_FILE}: {clip.key} is not in {clip.shard or 'any shard'}"
        ) from None


def _view_group(key: str) -> str:
    """The name that all views of a clip share."""
    view = _VIEW.fullmatch(key)
    return view[1] if view else key
