"""Agreement: whether the files of a finished dataset say what its commits say.

    accounts = check_manifest(store)
    problems = check_lists(store, accounts, results)

`manifest.parquet`, `shards.json`, `index.bin`, `statistics.json` and the tokenizer are all made of
commits, and `_SUCCESS` seals them with their hashes. A build makes any of them again in seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotate import accounts as account
from pipeline.commit import Store
from pipeline.finalize import MANIFEST_FILE, STATISTICS_FILE
from pipeline.shard_draft import LaidOut, token_sets_of
from pipeline.shards.format import (
    INDEX_FILE,
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    dump_declaration,
    parse_declaration,
    tokenizer_folders,
)
from pipeline.shards.sidecar import code_key_bytes, key_bytes
from pipeline.shards.table import read_table
from pipeline.statistics import merge
from pipeline.storage import sha256_of
from pipeline.upkeep.damage import ListedSamples, Problem

_COLUMNS = ["key", "clip_id", "outcome", "shard", "row", "code_key", "caption", "caption_by"]
_ACCOUNTS = ("n_in", "n_kept", "n_dropped", "n_error")


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """What the manifest says: outcomes, the samples by shard, the clip ids of errors."""

    outcomes: Counter[str] = field(default_factory=Counter)
    listed: dict[str, ListedSamples] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    """By clip id, those that a model wrote."""
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """`shards.json`, parsed."""

    token_sets: list[TokenSet]
    buckets: dict[str, Bucket]
    shards: list[ShardEntry]

    def token_sets_of(self, bucket: str) -> list[LaidOut]:
        """The token sets with their schedules in a bucket, the primary one first."""
        own = self.buckets[bucket]
        primary, *further = self.token_sets
        return [
            (primary, own.schedule),
            *((each, own.schedules.get(each.name)) for each in further),
        ]


def check_manifest(store: Store) -> Accounts | None:
    """The manifest, checked within itself; None when there is none or it cannot be read."""
    try:
        data = store.storage.read(MANIFEST_FILE)
        table = read_table(data, _COLUMNS)
        return _accounts(store, table)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def read_declared(store: Store) -> Declared:
    """`shards.json`; ShardError when it is damaged or missing."""
    where = f"{store.root}/{SHARDS_FILE}"
    try:
        text = store.storage.read(SHARDS_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{where}: cannot be read ({error})") from None
    _, token_sets, buckets, shards = parse_declaration(text, where)
    if dump_declaration(token_sets, buckets, shards) != text:
        raise ShardError(f"{where}: not the text that its records and fingerprint give")
    by_name = {each.name: each for each in buckets}
    return Declared(token_sets=token_sets, buckets=by_name, shards=shards)


def check_lists(
    store: Store,
    accounts: Accounts | None,
    declared: Declared | None,
    results: Mapping[str, dict[str, Any]],
    all_sound: bool,
) -> Iterator[Problem]:
    """Every disagreement between the derived files and the commits' results, by unit.

    `all_sound` says that no commit is damaged: else what it should say is not missed here.
    """
    yield from _check_seal(store, accounts, declared)
    if declared is not None:
        yield from _check_index(store, declared)
        yield from _check_tokenizer(store, declared)
    if not results:
        return  # made by no build: there is nothing that it could disagree with
    live = {
        result["parts"][0]["path"]: result
        for result in results.values()
        if result["phase"] == "tokenize" and result["parts"]
    }
    if declared is not None:
        yield from _check_entries(store, declared, live, all_sound)
        if all_sound:
            yield from _check_statistics(
                store, [live[each.path] for each in declared.shards if each.path in live]
            )
    if accounts is None:
        yield derived(store, MANIFEST_FILE, "damaged", "missing or cannot be read")
    else:
        yield from accounts.problems
        if declared is not None:
            yield from _check_manifest(store, accounts, declared, live)


def derived(store: Store, file: str, kind: str, what: str) -> Problem:
    """A problem of a file that a build writes anew."""
    return Problem(file=file, kind=kind, what=what, remedy="`tessera build` writes it anew")


def _accounts(store: Store, table: pa.Table) -> Accounts:
    outcomes = Counter(table["outcome"].to_pylist())
    problems = []
    strange = [o for o in outcomes if o != "kept" and not o.startswith(("dropped:", "error:"))]
    if strange:
        what = f"outcome {strange[0]!r} is not kept, dropped:<rule> or error:<class>"
        problems.append(derived(store, MANIFEST_FILE, "wrong", what))
    failed = table.filter(pc.starts_with(table["outcome"], "error:"))
    kept = table.filter(pc.equal(table["outcome"], "kept"))
    shards, codes = np.unique(np.array(kept["shard"].to_pylist(), dtype=str), return_inverse=True)
    rows = kept["row"].to_numpy()
    order = np.lexsort((rows, codes))
    keys = np.frombuffer(b"".join(map(key_bytes, kept["key"].to_pylist())), np.uint8)
    keys = keys.reshape(-1, 16)
    code_keys = b"".join(code_key_bytes(each or None) for each in kept["code_key"].to_pylist())
    code_key_rows = np.frombuffer(code_keys, np.uint8).reshape(-1, 16)
    if len(np.unique(keys, axis=0)) != len(keys):
        problems.append(derived(store, MANIFEST_FILE, "wrong", "a key is listed twice"))
    listed = {}
    edges = np.searchsorted(codes[order], np.arange(len(shards) + 1))
    for shard, first, last in zip(shards.tolist(), edges, edges[1:]):
        chosen = order[first:last]
        listed[shard] = ListedSamples(keys[chosen], code_key_rows[chosen])
        if not np.array_equal(rows[chosen], np.arange(len(chosen))):
            what = f"the rows of {shard or 'kept clips without a shard'} are not 0 to n - 1"
            problems.append(derived(store, MANIFEST_FILE, "wrong", what))
    errors = dict(zip(failed["clip_id"].to_pylist(), failed["outcome"].to_pylist()))
    by = table["caption_by"].to_pylist()
    by_model = table.filter(pa.array([":" in (each or "") for each in by], pa.bool_()))
    captions = dict(zip(by_model["clip_id"].to_pylist(), by_model["caption"].to_pylist()))
    return Accounts(
        outcomes=outcomes, listed=listed, errors=errors, captions=captions, problems=problems
    )


def _check_seal(
    store: Store, accounts: Accounts | None, declared: Declared | None
) -> Iterator[Problem]:
    """`_SUCCESS`: the hashes of the other files, and the totals."""
    try:
        seal = json.loads(store.storage.read(SUCCESS_FILE) or b"{}")
        hashes, totals = dict(seal.get("sha256", {})), {name: seal.get(name) for name in _ACCOUNTS}
    except (ValueError, AttributeError, TypeError):
        yield derived(store, SUCCESS_FILE, "damaged", "not the JSON that a build writes")
        return
    for name, expected in sorted(hashes.items()):
        try:
            found = sha256_of(store.storage, name)
        except OSError:
            yield derived(store, name, "missing", f"{SUCCESS_FILE} names it")
            continue
        if found != expected:
            what = f"sha256 {found[:12]}; {SUCCESS_FILE} says {str(expected)[:12]}"
            yield derived(store, name, "damaged", what)
    if totals["n_in"] is None:
        return
    if totals["n_in"] != totals["n_kept"] + totals["n_dropped"] + totals["n_error"]:
        yield derived(store, SUCCESS_FILE, "wrong", f"its counts do not add up ({totals})")
    if accounts is not None and not accounts.problems and account(accounts.outcomes) != totals:
        what = f"it counts {totals}, {MANIFEST_FILE} has {account(accounts.outcomes)}"
        yield derived(store, SUCCESS_FILE, "wrong", what)
    if declared is not None and seal.get("num_shards") != len(declared.shards):
        count = len(declared.shards)
        what = f"it counts {seal.get('num_shards')} shards, {SHARDS_FILE} has {count}"
        yield derived(store, SUCCESS_FILE, "wrong", what)


def _check_index(store: Store, declared: Declared) -> Iterator[Problem]:
    """`index.bin` is the sidecars, one after the other, and nothing else."""
    position = 0
    try:
        with store.storage.open(INDEX_FILE) as index:
            for entry in declared.shards:
                if entry.index_offset != position:
                    what = f"{entry.path} begins at {entry.index_offset} there, not at {position}"
                    yield derived(store, SHARDS_FILE, "wrong", what)
                    return
                data = index.read(entry.index_bytes)
                position += entry.index_bytes
                name = entry.path.removesuffix(".tar") + ".idx"
                if store.storage.size(name) is None:
                    continue  # named by the shard's own check
                if data != store.storage.read(name):
                    yield Problem(
                        file=INDEX_FILE,
                        kind="wrong",
                        what=f"what it has for {entry.path} is not {name}",
                        remedy="`tessera build` writes it anew",
                        at_byte=entry.index_offset,
                    )
            if index.read(1):
                yield derived(store, INDEX_FILE, "wrong", "bytes behind the last sidecar")
    except FileNotFoundError:
        yield derived(store, INDEX_FILE, "missing", "readers need it")


def _check_entries(
    store: Store, declared: Declared, live: Mapping[str, dict[str, Any]], all_sound: bool
) -> Iterator[Problem]:
    for entry in declared.shards:
        result = live.get(entry.path)
        if result is None:
            if all_sound:
                yield derived(store, SHARDS_FILE, "wrong", f"no commit names {entry.path}")
            continue
        tar = result["parts"][0]
        said = (entry.sha256, entry.size_bytes, entry.num_samples, entry.bucket, entry.split)
        committed = (
            *(tar["sha256"], tar["size_bytes"]),
            *(result["num_samples"], result["bucket"], result["split"]),
        )
        if said != committed:
            what = f"{entry.path}: {said}, its commit says {committed}"
            yield derived(store, SHARDS_FILE, "wrong", what)
        if token_sets_of(result) != declared.token_sets_of(entry.bucket):
            what = f"{entry.path} is of other token sets"
            yield derived(store, SHARDS_FILE, "wrong", what)


def _check_manifest(
    store: Store, accounts: Accounts, declared: Declared, live: Mapping[str, dict[str, Any]]
) -> Iterator[Problem]:
    named = {entry.path for entry in declared.shards}
    for shard in sorted(accounts.listed.keys() ^ named):
        what = f"{shard or 'a kept clip'} is in one of manifest.parquet and {SHARDS_FILE} only"
        yield derived(store, MANIFEST_FILE, "wrong", what)
    for entry in declared.shards:
        failed = live[entry.path]["failed"] if entry.path in live else {}
        lost = [each for each, outcome in failed.items() if accounts.errors.get(each) != outcome]
        if lost:
            what = f"{len(lost)} clips that failed in {entry.path} are not errors in it"
            yield derived(store, MANIFEST_FILE, "wrong", what)


def _check_statistics(store: Store, results: list[dict[str, Any]]) -> Iterator[Problem]:
    """The sum of the commits', errors left out: units of errors only have no shard."""
    try:
        found = json.loads(store.storage.read(STATISTICS_FILE))
        expected = json.loads(json.dumps(merge(*(each["statistics"] for each in results))))
        for record in (found, expected):
            record["outcomes"] = {"kept": record["outcomes"].get("kept", 0)}
        if found != expected:
            yield derived(store, STATISTICS_FILE, "wrong", "not the sum of the commits'")
    except FileNotFoundError:
        yield derived(store, STATISTICS_FILE, "missing", "`tessera stats` reads it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield derived(store, STATISTICS_FILE, "damaged", f"cannot be read ({error!r})")


def _check_tokenizer(store: Store, declared: Declared) -> Iterator[Problem]:
    folders = tokenizer_folders([each.name for each in declared.token_sets])
    for token_set in declared.token_sets:
        made_by = token_set.tokenizer
        if made_by is None:
            continue
        name = f"{folders[token_set.name]}/tokenizer.json"
        try:
            found = json.loads(store.storage.read(name))["fingerprint"]
        except FileNotFoundError:
            found = None
        except (ValueError, KeyError, TypeError):
            found = "damaged"
        if found != made_by and not (found is None and not store.committed()):
            yield Problem(
                file=name,
                kind="missing" if found is None else "wrong",
                what=f"fingerprint {str(found)[:16]}; the {token_set.name} are of tokenizer "
                f"{made_by[:16]}",
                remedy="put that tokenizer there",
            )
