"""Storage: a folder on a disk or in an object store, as the few operations that a build needs.

    storage = open_storage("runs/data")              # or s3://bucket/data, gs://..., memory://...
    storage.create("_commits/u.json", b"...")        # True: it was absent and is there now
    storage.read("_commits/u.json")

Everything that appears appears whole: on a disk by writing aside and linking or renaming, in an
object store because a PUT does. What a build is safe by is `create`, which must fail when the name
exists; `check` proves it, since some stores and some clients overwrite silently instead.

Options of a remote store (endpoint, credentials) come from its own environment variables and
configuration files, or from fsspec's (`FSSPEC_S3_...`), so that every worker finds them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from tokenizer.settings import UserError

FOLDERS = ("tmp", "parts", "_commits", "_attempts", "_removed")
_SCRATCH = threading.Lock()  # two folders at once: one would vanish with what is in it
_CREATE_ATTEMPTS = 5  # S3 may answer "conflict" to all of several writers at once
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Storage(Protocol):
    """Names are relative, with `/`; a file exists whole or not at all."""

    root: str

    def create(self, name: str, content: bytes | Path) -> bool:
        """Publishes content under a name if there is none; False, changing nothing, if there is."""
        ...

    def put(self, name: str, content: bytes | Path) -> None:
        """Publishes content under a name, in place of what was there."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes; FileNotFoundError when there is no such file."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream; FileNotFoundError when there is no such file."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes, or None when there is no such file."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file; none is fine."""
        ...

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted, without the folder; none when it is absent."""
        ...

    def walk(self) -> dict[str, int]:
        """The size of every file at any depth, by name, sorted; a link is a file of 0 bytes."""
        ...

    def age_seconds(self, name: str, now: float) -> float:
        """Seconds from the last change of a file to `now` (of `time.time`)."""
        ...

    def delete_older(self, name: str, min_age_seconds: float, now: float) -> bool:
        """Removes a file unless it is younger: one that was just put there stays."""
        ...

    def prepare(self) -> None:
        """Makes the place ready; UserError when it cannot be written."""
        ...

    def scratch(self) -> Path:
        """A local folder for files on their way in."""
        ...


def is_remote(root: str | Path) -> bool:
    return "://" in str(root)


def open_storage(root: str | Path) -> Storage:
    """The storage at a path or an fsspec URL; UserError when its protocol is not installed."""
    return RemoteStorage(str(root)) if is_remote(root) else LocalStorage(root)


def check(storage: Storage) -> None:
    """Proves that `create` creates only what is absent; UserError when the store overwrites."""
    name = f"tmp/check-{secrets.token_hex(6)}"
    try:
        first, second = storage.create(name, b"first"), storage.create(name, b"second")
        content = storage.read(name)
    except OSError as error:
        raise UserError(f"{storage.root}: cannot be written ({error}); choose another") from None
    finally:
        with suppress(OSError):
            storage.delete(name)
    if (first, second, content) != (True, False, b"first"):
        raise UserError(
            f"{storage.root}: this file system overwrites a file that it was told to create only "
            "when absent, so two builds could destroy each other's work; use a local disk, or a "
            "store and client with conditional writes (S3 with s3fs >= 2025)"
        )


class LocalStorage:
    """A folder on a file system with hard links; everything is synced before it is named."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._path = Path(root)

    def create(self, name: str, content: bytes | Path) -> bool:
        with self._aside(content) as temporary:
            try:
                (self._path / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(temporary, self._path / name)
            except FileExistsError:
                return False
        _sync_folder((self._path / name).parent)
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        with self._aside(content) as temporary:
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, self._path / name)
        _sync_folder((self._path / name).parent)

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        return open(self._path / name, "rb")

    def size(self, name: str) -> int | None:
        try:
            return (self._path / name).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._path / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []

    def age_seconds(self, name: str, now: float) -> float:
        return now - (self._path / name).stat().st_mtime

    def walk(self) -> dict[str, int]:
        found = {}
        for parent, folders, names in os.walk(self._path):
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in (*names, *links):
                path = Path(parent, name)
                try:
                    facts = path.lstat()
                except FileNotFoundError:
                    continue  # a build that runs has just moved it
                size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
                found[path.relative_to(self._path).as_posix()] = size
        return dict(sorted(found.items()))

    def delete_older(self, name: str, min_age_seconds: float, now: float) -> bool:
        aside = self.scratch() / f"swept-{secrets.token_hex(12)}"
        try:
            if now - (self._path / name).lstat().st_mtime < min_age_seconds:
                return False
            os.rename(self._path / name, aside)
        except FileNotFoundError:
            return False
        is_older = now - aside.lstat().st_mtime >= min_age_seconds
        if not is_older:  # it was put there after we looked: it belongs to a build that runs
            with suppress(FileExistsError):
                os.link(aside, self._path / name)
        aside.unlink()
        return is_older

    def prepare(self) -> None:
        try:
            for name in FOLDERS:
                (self._path / name).mkdir(parents=True, exist_ok=True)
            probe = self._path / "tmp" / f"probe-{secrets.token_hex(6)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{self.root}: the output folder cannot be written ({error.strerror}); "
                "choose another with --out"
            ) from None

    def scratch(self) -> Path:
        return self._path / "tmp"

    @contextmanager
    def _aside(self, content: bytes | Path) -> Iterator[Path]:
        """The content as a synced file in `tmp`, gone afterwards; a Path is taken as it is."""
        path = content if isinstance(content, Path) else self.scratch() / secrets.token_hex(12)
        try:
            if not isinstance(content, Path):
                with open(path, "wb") as file:
                    file.write(content)
            _sync_file(path)
            yield path
        finally:
            path.unlink(missing_ok=True)


class RemoteStorage:
    """A prefix of an object store, through fsspec."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_scratch": None, "_opened": None}

    def create(self, name: str, content: bytes | Path) -> bool:
        try:
            for _ in range(_CREATE_ATTEMPTS):
                if self._created(f"{self._files()[1]}/{name}", content):
                    return True
                if self.size(name) is not None:
                    return False
            raise OSError(f"{self.root}/{name}: neither written nor there")
        finally:
            if isinstance(content, Path):
                content.unlink(missing_ok=True)

    def put(self, name: str, content: bytes | Path) -> None:
        files, prefix = self._files()
        if isinstance(content, Path):
            files.put_file(str(content), f"{prefix}/{name}")
            content.unlink(missing_ok=True)
        else:
            files.pipe_file(f"{prefix}/{name}", content)

    def read(self, name: str) -> bytes:
        files, prefix = self._files()
        return files.cat_file(f"{prefix}/{name}")

    def open(self, name: str) -> IO[bytes]:
        files, prefix = self._files()
        files.invalidate_cache(f"{prefix}/{PurePosixPath(name).parent}")
        return files.open(f"{prefix}/{name}", "rb")

    def size(self, name: str) -> int | None:
        files, prefix = self._files()
        try:
            return int(files.info(f"{prefix}/{name}", refresh=True)["size"])
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        files, prefix = self._files()
        with suppress(FileNotFoundError):
            files.rm_file(f"{prefix}/{name}")

    def names(self, folder: str) -> list[str]:
        files, prefix = self._files()
        try:
            listed = files.ls(f"{prefix}/{folder}", detail=True, refresh=True)
        except FileNotFoundError:
            return []
        found = (PurePosixPath(row["name"]).name for row in listed if row["type"] == "file")
        return sorted(name for name in found if name)

    def age_seconds(self, name: str, now: float) -> float:
        files, prefix = self._files()
        return now - files.modified(f"{prefix}/{name}").timestamp()

    def walk(self) -> dict[str, int]:
        files, prefix = self._files()
        start = len(prefix.rstrip("/")) + 1
        found = files.find(prefix, detail=True, refresh=True)
        return {name[start:]: int(row["size"]) for name, row in sorted(found.items())}

    def delete_older(self, name: str, min_age_seconds: float, now: float) -> bool:
        with suppress(FileNotFoundError):
            if self.age_seconds(name, now) >= min_age_seconds:
                self.delete(name)
                return True
        return False

    def prepare(self) -> None:
        self._files()

    def scratch(self) -> Path:
        with _SCRATCH:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="tessera-")
            return Path(self._scratch.name)

    def _created(self, path: str, content: bytes | Path) -> bool:
        """One conditional write; False when it lost to what is there, or to a write under way."""
        files, _ = self._files()
        try:
            if isinstance(content, Path):
                files.put_file(str(content), path, mode="create")
            else:
                files.pipe_file(path, content, mode="create")
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
            if isinstance(error, FileExistsError) or code in _LOST:
                return False
            raise
        return True

    def _files(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            try:
                self._opened = fsspec.core.url_to_fs(self.root)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"{self.root}: {error}; install fsspec's package for this protocol"
                ) from None
        return self._opened


def sha256_of(storage: Storage, name: str) -> str:
    """The hash of a file, read in pieces; FileNotFoundError when there is none."""
    digest = hashlib.sha256()
    with storage.open(name) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def local_file(storage: Storage, name: str) -> Iterator[Path]:
    """A file as a path: itself on a disk, a copy on the way from elsewhere."""
    if isinstance(storage, LocalStorage):
        yield Path(storage.root) / name
        return
    copy = storage.scratch() / f"{secrets.token_hex(12)}-{PurePosixPath(name).name}"
    try:
        with storage.open(name) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@contextmanager
def light_copy(root: str | Path) -> Iterator[Path]:
    """A local folder with everything of a dataset but its shards; a local dataset is itself."""
    if not is_remote(root):
        yield Path(root)
        return
    storage = open_storage(root)
    with tempfile.TemporaryDirectory(prefix="tessera-view-") as folder:
        further = {
            name.rpartition("/")[0] for name in storage.walk() if name.startswith("tokenizers/")
        }
        for sub in ("", "_commits", "_removed", "parts", "tokenizer", *sorted(further)):
            for name in storage.names(sub):
                if not name.endswith(".tar"):
                    target = Path(folder) / sub / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(storage.read(f"{sub}/{name}" if sub else name))
        yield Path(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    _sync_file(path)
