"""Repair: what is damaged is taken out of the accounts, so that the next build makes it again.

    repair("runs/demo/data", verify("runs/demo/data"))

A sidecar that `index.bin` still has is put back. Any other unit with damage loses its commit, and
the dataset its `_SUCCESS`; a build then makes exactly these units, in the same bytes. The files
themselves stay where they are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.commit import COMMITS, PIXELS_FOLDER, Part, Store, with_pixels
from pipeline.shards.format import INDEX_FILE, SUCCESS_FILE, ShardError
from pipeline.upkeep.agreement import read_declared
from pipeline.upkeep.verify import Verdict


def repair(root: str | Path, verdict: Verdict) -> list[str]:
    """Acts on the problems that name a unit; says what it did, one line each."""
    said = []
    for store, prefix in zip(with_pixels(root), ("", f"{PIXELS_FOLDER}/")):
        units: dict[str, list[str]] = {}
        for problem in verdict.problems:
            is_pixels = problem.file.startswith(f"{PIXELS_FOLDER}/")
            if problem.unit is not None and is_pixels == bool(prefix):
                units.setdefault(problem.unit, []).append(problem.file.removeprefix(prefix))
        for unit, files in sorted(units.items()):
            if all(name.endswith(".idx") for name in files) and _restore_sidecar(store, unit):
                said.append(f"{prefix}{files[0]}: put back from {INDEX_FILE}")
                continue
            store.storage.delete(SUCCESS_FILE)
            store.storage.delete(f"{COMMITS}/{unit}.json")
            said.append(f"{prefix}{COMMITS}/{unit}.json: taken out; the next build makes it again")
    return said


def _restore_sidecar(store: Store, unit: str) -> bool:
    """Writes a sidecar anew from `index.bin`, when its bytes there are those of the commit."""
    try:
        tar, sidecar = (Part(**each) for each in store.read(unit)["result"]["parts"])
        entry = next(each for each in read_declared(store).shards if each.path == tar.path)
        with store.storage.open(INDEX_FILE) as index:
            index.seek(entry.index_offset)
            data = index.read(entry.index_bytes)
    except (ShardError, OSError, StopIteration):
        return False
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        return False
    store.storage.put(sidecar.path, data)
    return True
