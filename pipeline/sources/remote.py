"""Files behind URLs: their facts, their bytes in pieces, what lies below them; by fsspec.

What a network does to a request (a refused connection, "503 slow down") is tried again, three
times in all; a read goes on where it broke off. Everything else that goes wrong is an OSError whose
text is one line. Servers are not trusted: no piece is larger than asked for, and an HTTP server
that ignores byte ranges is read from its beginning.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from tokenizer.settings import UserError

PIECE_BYTES = 8 << 20
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_SILENCE_SECONDS = 60.0  # without a byte from an HTTP server
_MAX_PAGES, _MAX_LINKS, _MAX_DEPTH = 100_000, 10_000_000, 64
_STAMPS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Last-Modified", "LastModified", "last_modified"),
    *("updated", "mtime", "modified", "created"),
)
"""What file systems call the thing that changes with a file's content, the surest first."""
T = TypeVar("T")


@dataclass(frozen=True)
class FileFacts:
    """The size of a file, None where a server does not say, and its stamp.

    A stamp is another one when the content is; "" where nothing tells.
    """

    size_bytes: int | None
    stamp: str


Listing = dict[str, FileFacts | None]
"""What was found, by URL, sorted; None for a folder."""


class RemoteError(OSError):
    """A request that failed for good; the message is one line."""


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def shown(location: str) -> str:
    """A location for people: without the query of an HTTP URL, where signatures are."""
    return location.partition("?")[0] if is_http(location) else location


def url_path(url: str) -> str:
    """Bucket or host and path of a URL, as a name: no protocol, password, query or %20."""
    if is_http(url):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UserError(f"{shown(url)}: not a URL ({error})") from None
        return f"{parts.hostname}{unquote(parts.path)}"
    return url.partition("://")[2]


def remote_facts(url: str) -> FileFacts:
    """Size and stamp of a file behind a URL."""
    if is_http(url):
        return _tried(url, lambda: _http_facts(url))
    row = _tried(url, lambda: _info(url))
    facts = _facts_in(row)
    if facts is None:
        raise RemoteError(f"{shown(url)}: a folder, not a file")
    return facts


def remote_pieces(url: str, first: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
    """A file's bytes from `first` on, at most `size_bytes`, in pieces of at most 8 MiB."""
    position, failures = first, 0
    end = None if size_bytes is None else first + size_bytes
    while end is None or position < end:
        try:
            with closing(_pieces_once(url, position, end)) as pieces:
                for piece in pieces:
                    position += len(piece)
                    failures = 0
                    yield piece
            return
        except Exception as error:
            failures += 1
            _pause(url, error, failures)


def listed_below(url: str) -> Listing:
    """The files of a folder at any depth."""
    url = url.rstrip("/")
    if is_http(url):
        return _linked_below(url)
    files, path = _opened(url)
    files.invalidate_cache()
    return _listing(url, path, _tried(url, lambda: files.find(path, detail=True)))


def listed_in(url: str) -> Listing:
    """What lies directly in a folder."""
    files, path = _opened(url)
    rows = _tried(url, lambda: files.ls(path, detail=True))
    return _listing(url, path, {row["name"]: row for row in rows})


def matching(url: str) -> Listing:
    """What a glob matches."""
    files, path = _opened(url)
    files.invalidate_cache()
    return _listing(url, path, _tried(url, lambda: files.glob(path, detail=True)))


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


def _linked_below(url: str) -> Listing:
    """What pages of links below a page lead to; each page is read once."""
    files, _ = _opened(url)
    found: Listing = {}
    waiting, seen = [url + "/"], {url + "/"}
    for number in count(1):
        folder = waiting.pop()
        for row in _tried(folder, partial(files.ls, folder, detail=True)):
            name = _without_dots(str(row["name"]).partition("?")[0].partition("#")[0])
            if not name.startswith(url + "/") or name in seen:
                continue
            seen.add(name)
            if name.endswith("/"):
                waiting.append(name)
            else:
                found[name] = _facts_in(row)
        if not waiting:
            return dict(sorted(found.items()))
        if len(seen) > _MAX_LINKS or number == _MAX_PAGES or folder.count("/") > _MAX_DEPTH:
            raise RemoteError(f"{shown(url)}: links without end; give a manifest of the files")
    raise AssertionError


def _without_dots(url: str) -> str:
    """The URL that one with ./ and ../ in its path means."""
    protocol, _, place = url.partition("://")
    slash = "/" if place.endswith(("/", "/.", "/..")) else ""
    return f"{protocol}://{posixpath.normpath(place).rstrip('/')}{slash}"


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the name that it has there."""
    import fsspec

    options: dict[str, Any] = {}
    if is_http(url):
        import aiohttp

        silence = aiohttp.ClientTimeout(
            total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS
        )
        options = {"client_kwargs": {"timeout": silence}}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{shown(url)}: {error}; install fsspec's package for this protocol"
        ) from None


def _info(url: str) -> Any:
    files, path = _opened(url)
    return files.info(path, refresh=True)


def _pieces_once(url: str, first: int, end: int | None) -> Generator[bytes, None, None]:
    if is_http(url):
        yield from _http_pieces(url, first, end)
        return
    files, path = _opened(url)
    with files.open(path, "rb", block_size=PIECE_BYTES, cache_type="none") as file:
        if first:
            file.seek(first)
        left = PIECE_BYTES if end is None else end - first
        while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
            yield piece
            left = PIECE_BYTES if end is None else left - len(piece)


def _http_facts(url: str) -> FileFacts:
    """By a GET of one byte: signed URLs and many servers refuse HEAD."""
    import aiohttp

    try:
        with closing(_http_get(url, "bytes=0-0")) as file:
            headers, status = file.r.headers, file.r.status
    except aiohttp.ClientResponseError as error:
        if error.status == 416:  # no first byte
            return FileFacts(0, "")
        raise
    stamp = next((headers[name] for name in _STAMPS if headers.get(name)), "")
    text = headers.get("Content-Length", "")
    if status == 206:
        text = headers.get("Content-Range", "").rpartition("/")[2]
    return FileFacts(int(text) if text.isascii() and text.isdigit() else None, stamp)


def _http_pieces(url: str, first: int, end: int | None) -> Iterator[bytes]:
    is_part = first > 0 or end is not None
    last = "" if end is None else end - 1
    with closing(_http_get(url, f"bytes={first}-{last}" if is_part else None)) as file:
        skipped = 0 if file.r.status == 206 else first
        left = None if end is None else end - first
        while left is None or left > 0:
            piece = file.read(1 << 20)
            if not piece:
                return
            wanted = piece[skipped:][:left]
            skipped -= min(skipped, len(piece))
            if wanted:
                yield wanted
            left = None if left is None else left - len(wanted)


def _http_get(url: str, byte_range: str | None) -> Any:
    """An answer whose body streams as it is read."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {})
    files, path = _opened(url)
    return files.open(path, "rb", block_size=0, size=1, headers=headers)


def _tried(url: str, call: Callable[[], T]) -> T:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            _pause(url, error, attempt)
    raise AssertionError


def _pause(url: str, error: Exception, failures: int) -> None:
    """Waits before the next attempt; raises where there is none.

    Every file system has exceptions of its own, of libraries that are not here to be named.
    """
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise FileNotFoundError(f"{shown(url)}: no such file") from None
    refused = isinstance(error, PermissionError) or (
        isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    )
    if refused or failures >= _ATTEMPTS:
        text = " ".join(str(error).split())[:300].replace(url, shown(url))
        raise RemoteError(f"{shown(url)}: {text or type(error).__name__}") from None
    time.sleep(_PAUSE_SECONDS * 2 ** (failures - 1))
