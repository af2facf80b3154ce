"""The cache: files of remote datasets up to a size limit, and indexes of stock tars.

    cache = FileCache(cache_folder() / "shards", limit_bytes=cache_bytes())
    with cache.open("9f86d0...", size_bytes, sha256, fetch) as file: ...

It lies in $TESSERA_CACHE, else in $XDG_CACHE_HOME/tessera, else in ~/.cache/tessera, and may be
deleted at any time; $TESSERA_CACHE_BYTES limits it (default 100 GB). Processes share it:

    an open file      holds a shared lock, which says that it is in use
    a fetch           is made by one process at a time, into a `.part` of the full size, which its
                      maker locks; it is checked, then renamed
    making room       removes what was opened longest ago and is not in use

What is in use is never removed, so the limit must leave room for it: two windows of shards, or in
global order the shards of a batch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.shards.format import ShardError
from tokenizer.settings import UserError

DEFAULT_BYTES = 100 * 10**9
_PART = ".part"
_CHUNK_BYTES = 1 << 22


def cache_folder() -> Path:
    """Where the cache lies; it need not exist."""
    named = os.environ.get("TESSERA_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"


def cache_bytes() -> int:
    """How many bytes of remote files may be kept."""
    text = os.environ.get("TESSERA_CACHE_BYTES", str(DEFAULT_BYTES))
    try:
        limit = int(float(text))
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise UserError(f"TESSERA_CACHE_BYTES ({text!r}) must be a number of bytes, like 2e11")
    return limit


def publish(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=_PART, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


class FileCache:
    """Files by name in `folder`; `release` is asked to let go of files when there is no room."""

    def __init__(
        self, folder: Path, limit_bytes: int, release: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._release = release

    def open(
        self, name: str, size_bytes: int, sha256: str | None, fetch: Callable[[], Iterator[bytes]]
    ) -> IO[bytes]:
        """The file, which stays in the cache as long as it (or a map of it) is open.

        `fetch` gives its bytes when it is not there yet. ShardError when they are not `size_bytes`
        of content `sha256`.
        """
        path = self.folder / name
        while True:
            file = _open_locked(path)
            if file is not None:
                if os.fstat(file.fileno()).st_size == size_bytes:
                    with suppress(FileNotFoundError):
                        os.utime(path)
                    return file
                file.close()
                path.unlink(missing_ok=True)
            with self._lock(f"fetch-{name[:2]}"):
                if not path.exists():
                    self._fetch(path, size_bytes, sha256, fetch)

    def size_bytes(self) -> int:
        """Bytes of all files, finished or on their way."""
        return sum(status.st_size for _, status in self._files())

    def _fetch(
        self, path: Path, size_bytes: int, sha256: str | None, fetch: Callable[[], Iterator[bytes]]
    ) -> None:
        with self._reserved(path, size_bytes) as part:
            digest, count = hashlib.sha256(), 0
            for chunk in fetch():
                count += len(chunk)
                if count > size_bytes:
                    break
                digest.update(chunk)
                part.write(chunk)
            part.flush()
            if count != size_bytes or (sha256 is not None and digest.hexdigest() != sha256):
                what = "not the size" if count != size_bytes else "not the sha256"
                raise ShardError(f"{path.name}: what was fetched has {what} that was declared")
            with self._lock("room"):  # who makes room sees each file under one name
                os.replace(part.name, path)

    @contextmanager
    def _reserved(self, path: Path, size_bytes: int) -> Iterator[IO[bytes]]:
        """A part of the full size, in room made for it; removed unless it was renamed."""
        with self._lock("room"):
            self._make_room(size_bytes)
            file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed below, after its rename)
                dir=self.folder, prefix=f"{path.name[:32]}.", suffix=_PART, delete=False
            )
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            file.truncate(size_bytes)
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)
            file.close()

    def _make_room(self, size_bytes: int) -> None:
        if not self._freed(size_bytes) and self._release is not None:
            self._release()
            self._freed(size_bytes)

    def _freed(self, size_bytes: int) -> bool:
        """Removes what is not in use, oldest first, until there is room; False if it is not."""
        files = sorted(self._files(), key=lambda each: (each[0].suffix != _PART, each[1].st_mtime))
        total = sum(status.st_size for _, status in files) + size_bytes
        for path, status in files:
            if total <= self.limit_bytes and path.suffix != _PART:
                break
            if _remove_unused(path):
                total -= status.st_size
        return total <= self.limit_bytes

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            with suppress(FileNotFoundError):
                if entry.is_file():
                    yield Path(entry.path), entry.stat()

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / name, "w") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield


def _open_locked(path: Path) -> IO[bytes] | None:
    """The file under a shared lock; None when it is not there."""
    while True:
        try:
            file = open(path, "rb")  # noqa: SIM115 (the caller's)
        except FileNotFoundError:
            return None
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # removed between its opening and its lock


def _remove_unused(path: Path) -> bool:
    """Removes a file that nobody holds a lock on."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except (FileNotFoundError, BlockingIOError):
        return False
