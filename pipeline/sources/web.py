"""Files on web servers, which are not trusted: their facts, byte ranges, and pages of links.

An answer is read as a stream, so a server that ignores a byte range, or that never ends, costs no
memory; one that knows no ranges is read from its beginning.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import closing, suppress
from html.parser import HTMLParser
from itertools import count
from typing import Any
from urllib.parse import urljoin

from pipeline.sources.file import FileFacts
from pipeline.sources.patience import RemoteError, tried
from pipeline.sources.urls import opened, shown

_PIECE_BYTES = 1 << 20
_MAX_PAGE_BYTES = 16 << 20
_MAX_PAGES, _MAX_LINKS, _MAX_DEPTH = 100_000, 10_000_000, 64


def web_facts(url: str) -> FileFacts:
    """Size and stamp by a GET of one byte: signed URLs and many servers refuse HEAD."""
    import aiohttp

    try:
        with closing(_get(url, "bytes=0-0")) as file:
            headers, status = file.r.headers, file.r.status
    except aiohttp.ClientResponseError as error:
        if error.status == 416:  # no first byte
            return FileFacts(0, "")
        raise
    stamp = headers.get("ETag") or headers.get("Last-Modified", "")
    text = headers.get("Content-Length", "")
    if status == 206:
        text = headers.get("Content-Range", "").rpartition("/")[2]
    return FileFacts(int(text) if text.isascii() and text.isdigit() else None, stamp)


def web_pieces(url: str, first: int, end: int | None) -> Iterator[bytes]:
    """The bytes [first, end) of a file, or to its end."""
    if first == end:
        return
    is_part = first > 0 or end is not None
    last = "" if end is None else end - 1
    with closing(_get(url, f"bytes={first}-{last}" if is_part else None)) as file:
        skipped = 0 if file.r.status == 206 else first
        left = None if end is None else end - first
        while left is None or left > 0:
            piece = file.read(_PIECE_BYTES)
            if not piece:
                return
            wanted = piece[skipped:][:left]
            skipped -= min(skipped, len(piece))
            if wanted:
                yield wanted
            left = None if left is None else left - len(wanted)


def linked_below(url: str) -> list[str]:
    """The files that a page of links, and the pages below it, lead to, sorted; each page once."""
    root = url.rstrip("/") + "/"
    found: list[str] = []
    waiting, seen = [root], {root}
    for number in count(1):
        page = waiting.pop()
        for link in linked_in(page):
            if link.startswith(root) and link not in seen:
                seen.add(link)
                (waiting if link.endswith("/") else found).append(link)
        if not waiting:
            return sorted(found)
        if len(seen) > _MAX_LINKS or number == _MAX_PAGES or page.count("/") > _MAX_DEPTH:
            raise RemoteError(f"{shown(url)}: links without end; give a manifest of the files")
    raise AssertionError


def linked_in(page: str) -> list[str]:
    """Where the links of one page lead."""
    links = _Links(page)
    text = tried(page, lambda: _page(page))
    with suppress(AssertionError):  # of the parser, for some of what is no HTML
        links.feed(text)
    return links.found


class _Links(HTMLParser):
    """Where the links of a page lead, without queries."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._page = page

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        target = dict(attributes).get("href") if tag == "a" else None
        if target:
            with suppress(ValueError):
                link = urljoin(self._page, target.partition("#")[0].partition("?")[0])
                self.found.append(_without_dots(link))


def _without_dots(url: str) -> str:
    """The URL that one with ./ and ../ in its path means."""
    protocol, _, place = url.partition("://")
    slash = "/" if place.endswith(("/", "/.", "/..")) else ""
    return f"{protocol}://{posixpath.normpath(place).rstrip('/')}{slash}"


def _page(url: str) -> str:
    """The text of a page; nothing, where it is no page."""
    with closing(_get(url, None)) as file:
        if "html" not in file.r.headers.get("Content-Type", "html"):
            return ""
        content = b""
        while len(content) <= _MAX_PAGE_BYTES and (piece := file.read(_PIECE_BYTES)):
            content += piece
    if len(content) > _MAX_PAGE_BYTES:
        raise RemoteError(f"{shown(url)}: a page of more than {_MAX_PAGE_BYTES} bytes")
    return content.decode(errors="replace")


def _get(url: str, byte_range: str | None) -> Any:
    """An answer whose body streams as it is read."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {})
    files, path = opened(url)
    return files.open(path, "rb", block_size=0, size=1, headers=headers)
