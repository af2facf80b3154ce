"""Sweep: deletes what no commit names. `tessera gc DIR`.

    swept = sweep("runs/demo/data", min_age_seconds=3600, dry_run=True)
    swept["temporary files"].size_bytes

Builds that died leave drafts, parts that were published and never committed, and markers of their
attempts. A file that is younger than the given age may belong to a build that runs, and stays. With
`history`, what was committed and is not part of the finished dataset any more goes too, and with it
the chance to use it again. Stopped at any point and run again, it ends the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotate import AnnotateJob
from pipeline.commit import COMMITS, MERGE_FILE, Store, with_pixels
from pipeline.config import BuildConfig
from pipeline.plan import read_plan, units_of
from pipeline.shards.format import SUCCESS_FILE, ShardError
from pipeline.storage import local_file
from pipeline.upkeep.agreement import check_manifest, read_declared
from pipeline.upkeep.ledger import PART, check_commits
from tokenizer.settings import UserError, read_settings

MIN_AGE_SECONDS = 3600.0
TEMPORARY, UNCOMMITTED, MARKERS, SUPERSEDED = (
    "temporary files",
    "uncommitted parts",
    "attempt markers",
    "superseded units",
)


@dataclass(frozen=True)
class Swept:
    """Files of one kind that were deleted, or would be."""

    num_files: int = 0
    size_bytes: int = 0


def sweep(
    root: str | Path,
    *,
    min_age_seconds: float = MIN_AGE_SECONDS,
    history: bool = False,
    dry_run: bool = False,
) -> dict[str, Swept]:
    """Deletes what is left over in a dataset and its pixel shards; what it deleted, by kind."""
    total: dict[str, Swept] = {}
    for store in with_pixels(root):
        if not store.committed():
            raise UserError(f"{store.root}: no commits here; name a folder that a build made")
        names = store.storage.names("")
        if MERGE_FILE in names and SUCCESS_FILE not in names:
            raise UserError(f"{store.root}: a merge that is not finished; run it again first")
        superseded = _superseded(store) if history else set()
        swept = Sweeper(store, min_age_seconds, dry_run)
        swept.take_units(superseded)
        swept.take_left_over()
        total = add(total, swept.found)
    return total


def add(*records: Mapping[str, Swept]) -> dict[str, Swept]:
    """Files and bytes of several sweeps, by kind."""
    total: dict[str, Swept] = {}
    for record in records:
        for kind, found in record.items():
            before = total.get(kind, Swept())
            total[kind] = Swept(
                before.num_files + found.num_files, before.size_bytes + found.size_bytes
            )
    return total


class Sweeper:
    """Deletes files of one dataset, or only counts them."""

    def __init__(self, store: Store, min_age_seconds: float, dry_run: bool) -> None:
        self.found: dict[str, Swept] = {}
        self._store = store
        self._min_age_seconds = min_age_seconds
        self._dry_run = dry_run
        self._now = time.time()
        self._sizes = store.storage.walk()

    def take_left_over(self) -> None:
        """Drafts, parts without a commit, markers of units that have one."""
        names = self._sizes
        results = sound_results(self._store)  # after the listing: no later part is in `names`
        committed = paths_of(results)
        for name in names:
            if name.startswith("tmp/"):
                self.take(TEMPORARY, name)
            elif PART.fullmatch(name) and name not in committed:
                self.take(UNCOMMITTED, name)
            elif name.startswith("_attempts/") and _unit_of_marker(name) in results:
                self.take(MARKERS, name)

    def take_units(self, units: Iterable[str]) -> None:
        """Commits first, then their parts: a commit never names what is not there."""
        for unit in sorted(units):
            name = f"{COMMITS}/{unit}.json"
            parts = [part["path"] for part in self._store.read(unit)["result"]["parts"]]
            if self.take(SUPERSEDED, name):
                for part in parts:
                    self.take(SUPERSEDED, part)

    def take(self, kind: str, name: str) -> bool:
        """Deletes a file unless it is too young; whether it is gone."""
        storage = self._store.storage
        if self._dry_run:
            try:
                gone = storage.age_seconds(name, self._now) >= self._min_age_seconds
            except FileNotFoundError:
                return False
        else:
            gone = storage.delete_older(name, self._min_age_seconds, self._now)
        if gone:
            self.found = add(self.found, {kind: Swept(1, self._sizes.get(name, 0))})
        return gone


def _superseded(store: Store) -> set[str]:
    """The units that the finished dataset is not made of; UserError when it is not finished."""
    if store.storage.size(SUCCESS_FILE) is None:
        raise UserError(
            f"{store.root}: not finished, so its history is what it is made from; "
            "run `tessera build` to its end first"
        )
    return set(sound_results(store)) - live_units(store)


def live_units(store: Store) -> set[str]:
    """The units that the finished dataset, or the plan's scans, are made of."""
    try:
        shards = {entry.path for entry in read_declared(store).shards}
    except ShardError as error:
        raise UserError(str(error)) from None
    accounts = check_manifest(store)
    if accounts is None:
        raise UserError(f"{store.root}: its manifest cannot be read; see `tessera verify`")
    errors, captions = accounts.errors, accounts.captions
    results = sound_results(store)
    live = _scans_in_use(store, results)
    for unit, result in results.items():
        if result["phase"] == "tokenize":
            is_live = (
                result["parts"][0]["path"] in shards
                if result["parts"]
                else all(errors.get(clip) == why for clip, why in result["failed"].items())
            )
        elif result["phase"] == "caption":
            record = json.loads(store.storage.read(result["parts"][0]["path"]))
            is_live = any(captions.get(clip) == text for clip, text in record["captions"].items())
        else:
            continue
        if is_live:
            live.add(unit)
    return live


def _scans_in_use(store: Store, units: Iterable[str]) -> set[str]:
    """The annotate units of the folder's plan and settings; all, where there is no plan."""
    plan = read_plan(store)
    if not plan or store.storage.size("config.yaml") is None:
        return {unit for unit in units if unit.startswith("annotate-")}
    with local_file(store.storage, "config.yaml") as path:
        job = AnnotateJob(read_settings(BuildConfig, path, {"out": store.root}), store.root)
    return {job.unit(sources).id for sources in units_of(plan)}


def sound_results(store: Store) -> dict[str, dict[str, Any]]:
    """The results of all commits; UserError when one is damaged: its parts would look left over."""
    results, problems = check_commits(store)
    if problems:
        raise UserError(f"{store.root}: {problems[0]}; nothing was deleted")
    return results


def paths_of(results: Mapping[str, dict[str, Any]]) -> set[str]:
    return {part["path"] for result in results.values() for part in result["parts"]}


def _unit_of_marker(name: str) -> str:
    return name.removeprefix("_attempts/").rpartition(".")[0]
