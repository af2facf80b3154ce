"""The commit protocol: how work becomes part of a dataset, once, whatever dies.

    1. write under tmp/, hashing, fsync
    2. publish as parts/<name>-<sha256[:12]><suffix> (content-addressed: an equal file is the file)
    3. create _commits/<unit>.json if absent; the first wins, a loser deletes its own part

A *unit* of work is named by its phase and the hash of its ordered inputs and fingerprint. A commit
has a `result`, a function of the inputs alone (hashes, counts, statistics), and a `run` (host,
seconds, processes). Datasets are made from results only, so a build that was killed and resumed
ends in the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.shards.format import canonical_json
from tokenizer.settings import UserError


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


class Store:
    """A dataset folder seen as parts and commits."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def prepare(self) -> None:
        """Creates the folders; UserError when the place cannot be written."""
        try:
            for name in ("tmp", "parts", "_commits"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / "tmp" / f"probe-{secrets.token_hex(6)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{self.root}: the output folder cannot be written ({error.strerror}); "
                "choose another with --out"
            ) from None

    def write_part(self, name: str, suffix: str, write: Callable[[IO[bytes]], None]) -> Part:
        """Steps 1 and 2 for one file whose bytes `write` produces."""
        temporary = self.root / "tmp" / f"{name}.{secrets.token_hex(6)}"
        try:
            with open(temporary, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path = f"parts/{name}-{digest[:12]}{suffix}"
            os.replace(temporary, self.root / path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(self.root / "parts")
        return Part(path, digest, size)

    def write_beside(self, part: Part, suffix: str, data: bytes) -> Part:
        """Publishes a companion of a part, under the part's name with another suffix."""
        name = Path(part.path).stem
        temporary = self.root / "tmp" / f"{name}.{secrets.token_hex(6)}"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path = f"parts/{name}{suffix}"
        os.replace(temporary, self.root / path)
        _sync_folder(self.root / "parts")
        return Part(path, hashlib.sha256(data).hexdigest(), len(data))

    def discard(self, parts: Iterable[Part]) -> None:
        """Deletes published parts that no commit will name."""
        for part in parts:
            with suppress(FileNotFoundError):
                (self.root / part.path).unlink()

    def commit(self, unit: str, result: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
        """Step 3: True when this commit won; then, and only then, `result` is part of the build."""
        final = self.root / "_commits" / f"{unit}.json"
        record = {"unit": unit, "result": result, "run": run}
        text = canonical_json(record).decode() + "\n"
        temporary = self.root / "tmp" / f"{unit}.{secrets.token_hex(6)}"
        temporary.write_text(text, encoding="utf-8")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(temporary, final)
        except FileExistsError:
            self._delete_loser(result, self.read(unit)["result"])
            return False
        finally:
            temporary.unlink()
        _sync_folder(final.parent)
        return True

    def read(self, unit: str) -> dict[str, Any]:
        """The commit of a unit; FileNotFoundError when there is none."""
        path = self.root / "_commits" / f"{unit}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def has(self, unit: str) -> bool:
        return (self.root / "_commits" / f"{unit}.json").exists()

    def write_file(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """A derived file (manifest, shard list): written aside, then renamed over the old one."""
        temporary = self.root / "tmp" / f"{name}.{secrets.token_hex(6)}"
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.root / name)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(self.root)

    def _delete_loser(self, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        for part in mine.get("parts", ()):
            if part not in theirs.get("parts", ()):
                with suppress(FileNotFoundError):
                    (self.root / part["path"]).unlink()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
