"""Where a dataset's files lie: a folder of this machine.

`remote.RemoteFolder` is the other kind, with the same methods.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import IO

from pipeline.shards.format import INDEX_FILE, ShardEntry, ShardError
from pipeline.shards.shard import Shard
from pipeline.shards.sidecar import Sidecar, parse_sidecar


class LocalFolder:
    """A dataset folder on disk; `index.bin` is mapped when a shard is first read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._index: memoryview | None = None

    def __str__(self) -> str:
        return str(self.root)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none when there is no such folder."""
        if not (self.root / folder).is_dir():
            return []
        return sorted(each.name for each in (self.root / folder).iterdir())

    def local(self, name: str) -> Path | None:
        """The path of a file or folder; None when there is none."""
        path = self.root / name
        return path if path.exists() else None

    def shard(self, entry: ShardEntry) -> Shard:
        """A shard, to be opened when it is first read."""
        return Shard(
            name=f"{self.root}/{entry.path}",
            num_samples=entry.num_samples,
            open_file=lambda: self._open(entry),
            read_sidecar=lambda: self._sidecar(entry),
        )

    def _open(self, entry: ShardEntry) -> IO[bytes]:
        try:
            return open(self.root / entry.path, "rb")
        except FileNotFoundError:
            raise ShardError(f"{self.root / entry.path}: missing shard") from None
        except OSError as error:
            reason = error.strerror
            raise ShardError(f"{self.root / entry.path}: cannot be read ({reason})") from None

    def _sidecar(self, entry: ShardEntry) -> Sidecar:
        with self._lock:
            if self._index is None:
                self._index = map_file(self.root / INDEX_FILE)
        return entry_sidecar(self._index, entry, str(self.root / INDEX_FILE))


def map_file(path: Path) -> memoryview:
    """A file's bytes by memory map; ShardError when it is missing or empty."""
    try:
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError):
        raise ShardError(f"{path}: missing or empty") from None


def entry_sidecar(index: memoryview, entry: ShardEntry, where: str) -> Sidecar:
    """The sidecar of a shard, out of the index of all."""
    data = index[entry.index_offset : entry.index_offset + entry.index_bytes]
    sidecar = parse_sidecar(data, f"{where} ({entry.path})")
    if sidecar.tar_bytes != entry.size_bytes:
        raise ShardError(
            f"{where} ({entry.path}): about a tar of {sidecar.tar_bytes} bytes, the shard has "
            f"{entry.size_bytes}"
        )
    return sidecar
