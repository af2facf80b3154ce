"""The cache: indexes of stock tars, and remote shards up to a size limit.

It lies in $TESSERA_CACHE, else in $XDG_CACHE_HOME/tessera, else in ~/.cache/tessera, and may be
deleted at any time. Several processes share it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where the cache lies; it need not exist."""
    named = os.environ.get("TESSERA_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"


def publish(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
