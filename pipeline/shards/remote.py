"""A dataset in an object store, or wherever fsspec reaches: read through the cache.

    dataset = open_dataset("s3://bucket/dataset")
    loader = Loader(dataset.by_bucket("train"), LoaderConfig(..., order="window"))

Opening reads `_SUCCESS`, `shards.json` and the list of removals, and no shard. `index.bin`, shards,
manifest and tokenizer are fetched when they are needed, and kept; a shard is checked against its
sha256. Options of a store (endpoint, credentials) come from its own environment and configuration.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.shards.cache import FileCache, cache_bytes, cache_folder
from pipeline.shards.folder import entry_sidecar
from pipeline.shards.format import INDEX_FILE, SHARDS_FILE, ShardEntry, ShardError
from pipeline.shards.shard import Shard, let_go
from pipeline.shards.sidecar import Sidecar
from tokenizer.settings import UserError

_CHUNK_BYTES = 1 << 24


def is_remote(location: object) -> bool:
    """Whether this is a URL, not a path."""
    return isinstance(location, str) and "://" in location


class RemoteFolder:
    """A dataset folder by its URL; UserError when its store cannot be reached."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._files, self._root = _filesystem(self._url)
        self._lock = threading.Lock()
        self._index: memoryview | None = None
        self._identity = ""
        self._cache = FileCache(cache_folder() / "shards", cache_bytes(), let_go)

    def __str__(self) -> str:
        return self._url

    def exists(self, name: str) -> bool:
        return bool(self._files.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        content = bytes(self._files.cat_file(f"{self._root}/{name}"))
        if name == SHARDS_FILE:
            self._identity = hashlib.sha256(f"{self._url}\n".encode() + content).hexdigest()[:32]
        return content

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none when there is no such folder."""
        try:
            found = self._files.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted({PurePosixPath(each).name for each in found} - {"", ".", ".."})

    def local(self, name: str) -> Path | None:
        """A copy of a file, or of the files of a folder; None when there is none."""
        target = cache_folder() / "folders" / self._name() / name
        if target.exists():
            return target
        path = f"{self._root}/{name}"
        if not self._files.exists(path):
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            copy = Path(aside) / "copy"
            if self._files.isdir(path):
                copy.mkdir()
                for each in self.names(name):
                    self._files.get_file(f"{path}/{each}", str(copy / each))
            else:
                self._files.get_file(path, str(copy))
            if not target.exists():
                os.replace(copy, target)
        return target

    def shard(self, entry: ShardEntry) -> Shard:
        """A shard, to be fetched and opened when it is first read."""
        return Shard(
            name=f"{self._url}/{entry.path}",
            num_samples=entry.num_samples,
            open_file=lambda: self._open(entry),
            read_sidecar=lambda: self._sidecar(entry),
            is_remote=True,
        )

    def _open(self, entry: ShardEntry) -> IO[bytes]:
        try:
            return self._cache.open(
                entry.sha256, entry.size_bytes, entry.sha256, lambda: self._chunks(entry.path)
            )
        except FileNotFoundError:
            raise ShardError(f"{self._url}/{entry.path}: missing shard") from None
        except ShardError as error:
            raise ShardError(f"{self._url}/{entry.path}: {error}") from None

    def _sidecar(self, entry: ShardEntry) -> Sidecar:
        with self._lock:
            if self._index is None:
                self._index = self._map_index()
        return entry_sidecar(self._index, entry, f"{self._url}/{INDEX_FILE}")

    def _map_index(self) -> memoryview:
        size = int(self._files.size(f"{self._root}/{INDEX_FILE}"))
        name = f"index-{self._name()}"
        with self._cache.open(name, size, None, lambda: self._chunks(INDEX_FILE)) as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._files.open(
            f"{self._root}/{name}", "rb", block_size=_CHUNK_BYTES, cache_type="readahead"
        ) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _name(self) -> str:
        """What is kept of this dataset is kept under this name; a changed dataset has another."""
        if not self._identity:
            self.read(SHARDS_FILE)
        return self._identity


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{url}: reading it needs fsspec: pip install fsspec") from None
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {error}") from None
    files.invalidate_cache()  # of listings: the dataset may be newer than they are
    return files, root.rstrip("/")
