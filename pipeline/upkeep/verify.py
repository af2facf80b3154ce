"""Verify: everything in a dataset folder is what was committed, and nothing else is there.

    verdict = verify("runs/demo/data")
    for problem in verdict.problems:
        print(problem)              # parts/x.tar at byte 4608: damaged: row 3, 'a_0': codes.npy ...

Every byte is hashed again; sidecars are derived from their tars; manifest, index, shard list and
statistics are compared with the commits, plan and selection with the checksums of their pages;
removed sources are looked for in every file. Works on a build that is not finished, too. What a
build may still be using is a note, not a problem. `config.yaml`, `report.html` and `_status.json`
are for people and are not checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.commit import COMMITS, MERGE_FILE, PIXELS_FOLDER, Part, Store, with_pixels
from pipeline.finalize import MANIFEST_FILE, STATISTICS_FILE, TOKENIZER_FILES
from pipeline.inspection.report import REPORT_FILE
from pipeline.plan import PLAN_FILE, is_plan
from pipeline.progress import Progress
from pipeline.removal import (
    hidden_rows,
    removed_sources,
    rows_of,
    without_rows,
)
from pipeline.select import SELECTION_FILE
from pipeline.shards.format import FORMAT_VERSION, INDEX_FILE, SHARDS_FILE, SUCCESS_FILE, ShardError
from pipeline.shards.removal import REMOVED_FOLDER, parse_tombstone
from pipeline.shards.table import read_table
from pipeline.status import STATUS_FILE
from pipeline.upkeep.agreement import (
    Accounts,
    Declared,
    check_lists,
    check_manifest,
    derived,
    read_declared,
)
from pipeline.upkeep.damage import ListedSamples, Problem, ShardClaim, check_part, check_shard
from pipeline.upkeep.ledger import PART, UNIT, check_commits, claims_of
from pipeline.upkeep.migrate import MARKER
from pipeline.upkeep.remains import find_remains
from tokenizer.settings import UserError

KNOWN_FILES = {
    *("config.yaml", PLAN_FILE, SELECTION_FILE, MANIFEST_FILE, STATISTICS_FILE),
    *(INDEX_FILE, SHARDS_FILE, SUCCESS_FILE, REPORT_FILE, MERGE_FILE, STATUS_FILE, MARKER),
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
}
OTHER_FOLDERS = ("tokenizer_run/",)
"""Folders that other commands keep beside the dataset."""

_FURTHER_TOKENIZER = re.compile(
    rf"tokenizers/[a-z0-9_-]+/({'|'.join(map(re.escape, TOKENIZER_FILES))})"
)
_ATTEMPT = re.compile(r"(annotate|caption|tokenize)-[0-9a-f]{24}\.[0-9]+")
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `verify` found; `notes` are facts that are no fault."""

    root: str
    is_finished: bool
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    num_units: int
    num_shards: int
    num_samples: int
    size_bytes: int
    num_removed_sources: int
    remains: Mapping[str, str]
    """What is left of removed sources, by file; empty when they are erased."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(root: str | Path, progress: Progress | None = None) -> Verdict:
    """The verdict on a dataset folder and its pixel shards; UserError when it is no dataset."""
    store, *pixels = with_pixels(root)
    verdict = _verify(store, progress)
    for each in pixels:
        found = _verify(each, progress)
        verdict = replace(
            verdict,
            problems=(
                *verdict.problems,
                *(replace(p, file=f"{PIXELS_FOLDER}/{p.file}") for p in found.problems),
            ),
            notes=(*verdict.notes, *(f"{PIXELS_FOLDER}: {note}" for note in found.notes)),
            num_units=verdict.num_units + found.num_units,
            num_shards=verdict.num_shards + found.num_shards,
            num_samples=verdict.num_samples + found.num_samples,
            size_bytes=verdict.size_bytes + found.size_bytes,
            remains={
                **verdict.remains,
                **{f"{PIXELS_FOLDER}/{name}": what for name, what in found.remains.items()},
            },
        )
    return verdict


def _refuse_older(store: Store, files: Container[str]) -> None:
    """UserError for a dataset of an earlier version: what it lacks is no damage."""
    if SHARDS_FILE not in files:
        return
    try:
        version = json.loads(store.storage.read(SHARDS_FILE))["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise UserError(
            f"{store.root}: a dataset of format version {version}; run `tessera migrate "
            f"{store.root}` first"
        )


def _verify(store: Store, progress: Progress | None) -> Verdict:
    files = store.storage.walk()
    _refuse_older(store, files)
    results, problems = check_commits(store)
    all_sound = not problems
    is_finished = SUCCESS_FILE in files
    if not is_finished and not store.committed() and SHARDS_FILE not in files:
        raise UserError(f"{store.root}: no dataset here (neither commits nor {SHARDS_FILE})")
    accounts: Accounts | None = None
    declared: Declared | None = None
    if is_finished:
        accounts = check_manifest(store)
        try:
            declared = read_declared(store)
        except ShardError as error:
            text = str(error).partition(": ")[2]
            problems.append(derived(store, SHARDS_FILE, "damaged", text))
    claims = claims_of(store, results, declared)
    listed = accounts.listed if accounts else {}
    problems += _check_parts(store, claims, results, listed, progress)
    if is_finished:
        problems += check_lists(store, accounts, declared, results, all_sound)
    problems += _check_tables(store, files)
    committed = {part["path"] for each in results.values() for part in each["parts"]}
    committed |= {part.path for claim in claims for part in (claim.tar, claim.sidecar)}
    foreign, notes = _explain(store, files, committed)
    problems += foreign
    removed, remains, more = _check_removed(store, files)
    problems += more
    if not is_finished:
        notes.append(f"not finished: {len(results)} units committed so far")
    if removed:
        notes.append(
            f"{removed} removed sources: "
            + (
                f"hidden, not yet erased ({len(remains)} files, --json names them); "
                f"`tessera gc {store.root} --rewrite` erases them"
                if remains
                else "nothing of them is left"
            )
        )
    return Verdict(
        root=store.root,
        is_finished=is_finished,
        problems=tuple(sorted(problems, key=lambda each: (each.file, each.at_byte or 0))),
        notes=tuple(notes),
        num_units=len(results),
        num_shards=len(claims),
        num_samples=sum(claim.num_samples for claim in claims),
        size_bytes=sum(files.values()),
        num_removed_sources=removed,
        remains=remains,
    )


def _check_parts(
    store: Store,
    claims: Iterable[ShardClaim],
    results: Mapping[str, dict[str, Any]],
    listed: Mapping[str, ListedSamples],
    progress: Progress | None,
) -> list[Problem]:
    """Every part of every unit, several at a time."""
    work: list[Callable[[], list[Problem]]] = []
    for claim in claims:
        rows = listed.get(claim.tar.path)
        work.append(lambda claim=claim, rows=rows: check_shard(store, claim, rows))  # type: ignore[misc]
    for unit, result in results.items():
        if result["phase"] != "tokenize":
            for part in result["parts"]:
                work.append(
                    lambda unit=unit, part=part: check_part(store, Part(**part), unit)  # type: ignore[misc]
                )
    problems: list[Problem] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda check: check(), work)
        if progress is None or not work:
            return [problem for each in found for problem in each]
        with progress.phase("verify", len(work), 0) as advance:
            for each in found:
                problems += each
                advance()
    return problems


def _check_tables(store: Store, files: Container[str]) -> Iterator[Problem]:
    """What a build works from: tables whose pages carry checksums."""
    for name, remedy in (
        (PLAN_FILE, "delete it; `tessera build` lists and identifies the files again"),
        (SELECTION_FILE, "`tessera build` writes it anew"),
    ):
        if name in files:
            try:
                table = read_table(store.storage.read(name))
                if name == PLAN_FILE and not is_plan(table):
                    raise ValueError("not the columns of a plan")
            except (pa.ArrowException, OSError, ValueError) as error:
                what = str(error).splitlines()[0][:200]
                yield Problem(file=name, kind="damaged", what=what, remedy=remedy)


def _explain(
    store: Store, files: Mapping[str, int], committed: set[str]
) -> tuple[list[Problem], list[str]]:
    """Files that nothing explains, and notes on what a build has left or is making."""
    foreign, left = [], {"on their way in": 0, "uncommitted": 0, "attempt markers": 0}
    for name in files:
        path = PurePosixPath(name)
        folder = path.parts[0] if len(path.parts) > 1 else ""
        if name in KNOWN_FILES or name in committed or name.startswith(OTHER_FOLDERS):
            continue
        if _FURTHER_TOKENIZER.fullmatch(name):
            continue
        if folder == PIXELS_FOLDER or (folder == COMMITS and UNIT.fullmatch(path.stem)):
            continue
        if folder == REMOVED_FOLDER and path.suffix == ".json":
            continue
        if folder == "tmp":
            left["on their way in"] += 1
        elif PART.fullmatch(name):
            left["uncommitted"] += 1
        elif folder == "_attempts" and _ATTEMPT.fullmatch(path.name):
            left["attempt markers"] += 1
        else:
            foreign.append(
                Problem(
                    file=name,
                    kind="foreign",
                    what="no commit and no part of the format explains it",
                    remedy="move it elsewhere",
                )
            )
    found = ", ".join(f"{count} {what}" for what, count in left.items() if count)
    hint = f"left by builds that died, or used by one that runs; `tessera gc {store.root}`"
    return foreign, [f"{found}: {hint}"] if found else []


def _check_removed(
    store: Store, files: Mapping[str, int]
) -> tuple[int, dict[str, str], list[Problem]]:
    """How many sources were removed, what is left of them, and tombstones that are not sound."""
    problems = list(_unsound_tombstones(store))
    if problems:
        return 0, {}, problems
    removed = removed_sources(store)
    own = [name for name in files if not name.startswith((f"{PIXELS_FOLDER}/", *OTHER_FOLDERS))]
    remains = find_remains(store, removed, own)
    if removed and MANIFEST_FILE in files:
        try:
            shown = without_rows(rows_of(store, removed), hidden_rows(store))
        except UserError:
            shown = {}  # the manifest cannot be read, which is a problem of its own
        problems += [
            Problem(
                file=shard,
                kind="wrong",
                what=f"{len(rows)} samples of removed sources are not hidden",
                remedy=f"`tessera remove {store.root}` them again",
            )
            for shard, rows in shown.items()
        ]
    return len(removed), remains, problems


def _unsound_tombstones(store: Store) -> Iterator[Problem]:
    for name in store.storage.names(REMOVED_FOLDER):
        if name.endswith(".json"):
            try:
                parse_tombstone(name, store.storage.read(f"{REMOVED_FOLDER}/{name}"))
            except ValueError as error:
                yield Problem(
                    file=f"{REMOVED_FOLDER}/{name}",
                    kind="damaged",
                    what=str(error),
                    remedy=f"delete it, then `tessera remove {store.root}` its sources again",
                )
