"""The commit protocol: how work becomes part of a dataset, once, whatever dies.

    1. write aside, hashing, fsync
    2. publish as parts/<name>-<sha256[:12]><suffix> (content-addressed: an equal file is the file)
    3. create _commits/<unit>.json if absent; the first wins, a loser deletes its own part

The same steps on a disk and in an object store (`storage`).

A *unit* of work is named by its phase and the hash of its ordered inputs and fingerprint. A commit
has a `result`, a function of the inputs alone (hashes, counts, statistics), and a `run` (host,
seconds, processes). Datasets are made from results only, so a build that was killed and resumed
ends in the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pipeline.shards.format import canonical_json
from pipeline.shards.hashing import HashingStream
from pipeline.storage import Storage, check, open_storage
from tokenizer.settings import UserError

COMMITS = "_commits"
PIXELS_FOLDER = "pixels"
MERGE_FILE = "merge.json"


@dataclass(frozen=True)
class Part:
    """A published file: its path inside the dataset, its hash and size."""

    path: str
    sha256: str
    size_bytes: int


def unit_id(phase: str, inputs: object, fingerprint: str) -> str:
    """The name of a unit: never from how an engine cut its blocks, always from what goes in."""
    digest = hashlib.sha256(canonical_json([phase, inputs, fingerprint])).hexdigest()
    return f"{phase}-{digest[:24]}"


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """sha256 of settings and versions: equal when the same inputs must give the same bytes."""
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def with_pixels(root: str | Path) -> list[Store]:
    """The dataset in a folder, and the pixel shards of the same clips where there are any."""
    store, pixels = Store(root), Store(f"{root}/{PIXELS_FOLDER}")
    return [store, pixels] if pixels.committed() else [store]


def result_sha256(result: Mapping[str, Any]) -> str:
    """The hash by which a commit knows that its result is whole."""
    return hashlib.sha256(canonical_json(result)).hexdigest()


class Store:
    """A dataset folder, on a disk or in an object store, seen as parts and commits."""

    def __init__(self, root: str | Path) -> None:
        self.storage = open_storage(root)
        self.root = self.storage.root

    def prepare(self) -> None:
        """Makes the place ready; UserError when it cannot be written, or overwrites silently."""
        self.storage.prepare()
        check(self.storage)

    def draft(self, name: str) -> Draft:
        """Step 1: a file that nobody sees until it is published."""
        return Draft(self.storage, name)

    def write_part(self, name: str, suffix: str, write: Callable[[IO[bytes]], None]) -> Part:
        """Steps 1 and 2 for one file whose bytes `write` produces."""
        with self.draft(name) as draft:
            write(draft.stream)
            return draft.publish(suffix)

    def write_beside(self, part: Part, suffix: str, data: bytes) -> Part:
        """Publishes a companion of a part, under the part's name with another suffix."""
        path = str(PurePosixPath(part.path).with_suffix(suffix))
        self.storage.put(path, data)
        return Part(path, hashlib.sha256(data).hexdigest(), len(data))

    def commit(self, unit: str, result: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
        """Step 3: True when this commit won; then, and only then, `result` is part of the build."""
        record = canonical_json(
            {"unit": unit, "result": result, "run": run, "sha256": result_sha256(result)}
        )
        if self.storage.create(f"{COMMITS}/{unit}.json", record + b"\n"):
            return True
        winner = self.read(unit)["result"]
        for part in result.get("parts", ()):
            if part not in winner.get("parts", ()):
                self.storage.delete(part["path"])
        return False

    def read(self, unit: str) -> dict[str, Any]:
        """The commit of a unit; FileNotFoundError when there is none, UserError when damaged."""
        try:
            record = json.loads(self.storage.read(f"{COMMITS}/{unit}.json"))
            claimed = record.get("sha256")  # version 1 has none
            sound = claimed in (None, result_sha256(record["result"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(
                f"{self.root}/{COMMITS}/{unit}.json: damaged; take it out by `tessera verify "
                f"{self.root} --repair`, and the next build makes it again"
            )
        return record

    def has(self, unit: str) -> bool:
        return self.storage.size(f"{COMMITS}/{unit}.json") is not None

    def committed(self) -> set[str]:
        """The ids of all units that have a commit: one listing, whatever their number."""
        return {
            name.removesuffix(".json")
            for name in self.storage.names(COMMITS)
            if name.endswith(".json")
        }

    def write_file(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """A derived file (manifest, shard list): written aside, then put over the old one."""
        temporary = self.storage.scratch() / f"{name}.{secrets.token_hex(6)}"
        try:
            with open(temporary, "wb") as file:
                write(file)
            self.storage.put(name, temporary)
        finally:
            temporary.unlink(missing_ok=True)


class Draft:
    """A file being written and hashed; leaving it unpublished deletes it."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._path = storage.scratch() / f"{name}.{secrets.token_hex(6)}"
        self._file = open(self._path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._hashed = HashingStream(self._file)

    @property
    def stream(self) -> IO[bytes]:
        return cast(IO[bytes], self._hashed)

    def publish(self, suffix: str) -> Part:
        """Step 2: the file under its content's name."""
        self._file.close()
        digest = self._hashed.sha256()
        path = f"parts/{self._name}-{digest[:12]}{suffix}"
        self._storage.put(path, self._path)
        return Part(path, digest, self._hashed.size_bytes)

    def close(self) -> None:
        """Deletes what was not published."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
