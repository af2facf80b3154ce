"""Files behind URLs: their facts, their bytes in pieces, what lies below them; by fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from pipeline.sources.file import FileFacts
from pipeline.sources.patience import RemoteError, tried, tried_pieces
from pipeline.sources.urls import is_http, opened, shown
from pipeline.sources.web import linked_below, linked_in, web_facts, web_pieces

PIECE_BYTES = 8 << 20
_STAMPS = (
    *("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified"),
    *("updated", "mtime", "modified", "created"),
)
"""What file systems call the thing that changes with a file's content, the surest first."""

Listing = dict[str, FileFacts | None]
"""What was found, by URL, sorted; None for a folder."""


def remote_facts(url: str) -> FileFacts:
    """Size and stamp of a file behind a URL."""
    if is_http(url):
        return tried(url, lambda: web_facts(url))
    files, path = opened(url)
    facts = _facts_in(tried(url, lambda: files.info(path, refresh=True)))
    if facts is None:
        raise RemoteError(f"{shown(url)}: a folder, not a file")
    return facts


def remote_pieces(url: str, first: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
    """A file's bytes from `first` on, at most `size_bytes`, in pieces of at most 8 MiB."""
    end = None if size_bytes is None else first + size_bytes
    read = web_pieces if is_http(url) else _stored_pieces
    return tried_pieces(url, lambda position: read(url, position, end), first)


def listed_below(url: str) -> Listing:
    """The files of a folder at any depth."""
    url = url.rstrip("/")
    if is_http(url):
        return dict.fromkeys(linked_below(url), FileFacts(None, ""))
    files, path = opened(url)
    files.invalidate_cache()
    return _listing(url, path, tried(url, lambda: files.find(path, detail=True)))


def listed_in(url: str) -> Listing:
    """What lies directly in a folder."""
    if is_http(url):
        return dict.fromkeys(linked_in(f"{url}/"), FileFacts(None, ""))
    files, path = opened(url)
    rows = tried(url, lambda: files.ls(path, detail=True))
    return _listing(url, path, {row["name"]: row for row in rows})


def matching(url: str) -> Listing:
    """What a glob matches; of pages of links, files only."""
    if is_http(url):
        from fsspec.utils import glob_translate

        matched = re.compile(glob_translate(url)).match
        below = listed_below(url[: url.index("*")].rpartition("/")[0])
        return {name: facts for name, facts in below.items() if matched(name)}
    files, path = opened(url)
    files.invalidate_cache()
    return _listing(url, path, tried(url, lambda: files.glob(path, detail=True)))


def _listing(url: str, path: str, rows: Mapping[str, Any]) -> Listing:
    """Rows that fsspec made, by URL, where `url` has the name `path`."""
    before = url.removesuffix(path)
    return {before + name: _facts_in(row) for name, row in sorted(rows.items())}


def _facts_in(row: Mapping[str, Any]) -> FileFacts | None:
    if row.get("type") == "directory":
        return None
    size = row.get("size")
    stamp = next((str(row[name]) for name in _STAMPS if row.get(name)), "")
    return FileFacts(None if size is None else int(size), stamp)


def _stored_pieces(url: str, first: int, end: int | None) -> Iterator[bytes]:
    files, path = opened(url)
    with closing(files.open(path, "rb", block_size=PIECE_BYTES, cache_type="none")) as file:
        file.seek(first)
        left = PIECE_BYTES if end is None else end - first
        while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
            yield piece
            left = PIECE_BYTES if end is None else left - len(piece)
