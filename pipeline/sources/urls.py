"""URLs: what they say, and the file systems of fsspec that open them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from tokenizer.settings import UserError

_USER = re.compile("://[^/@]*@")
_SILENCE_SECONDS = 60.0  # without a byte from an HTTP server


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def shown(location: str) -> str:
    """A location for people: without password, or the query of an HTTP URL (a signature)."""
    if is_http(location):
        location = location.partition("?")[0]
    return _USER.sub("://", location, count=1)


def url_path(url: str) -> str:
    """Bucket or host and path of a URL, as a name: no protocol, password, query or %20."""
    if not is_http(url):
        return url.partition("://")[2]
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{shown(url)}: not a URL ({error})") from None
    return f"{parts.hostname}{unquote(parts.path)}"


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL and the name that it has there; UserError when there is none."""
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
