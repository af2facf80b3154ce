"""Patience: what a network does to a request is tried again, and a read goes on where it broke off.

A refused connection, an answer that breaks off, "408", "429", "503 slow down" may be better in a
moment, or in a minute; a file that is not there or may not be read is not. What stays wrong is an
OSError whose text is one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

from pipeline.sources.urls import shown
from tokenizer.settings import UserError

_PAUSE_SECONDS = 0.5  # doubled each time
_MAX_PAUSE_SECONDS = 30.0
_ATTEMPTS = 3  # of a request: whoever lists waits for the answer
_ATTEMPTS_TO_READ = 8  # without a byte between them: a store may be away for a minute
T = TypeVar("T")


class RemoteError(OSError):
    """A request that failed for good; the message is one line."""


def tried(url: str, call: Callable[[], T]) -> T:
    """What the call returns, when it does within three attempts."""
    for failures in count(1):
        try:
            return call()
        except (UserError, RemoteError):
            raise
        except Exception as error:
            _pause(url, error, failures, _ATTEMPTS)
    raise AssertionError


def tried_pieces(url: str, read: Callable[[int], Iterator[bytes]], first: int) -> Iterator[bytes]:
    """The pieces of a file from `first` on; where `read` breaks off, it is called again there."""
    position, failures = first, 0
    while True:
        try:
            for piece in read(position):
                position += len(piece)
                failures = 0
                yield piece
            return
        except (UserError, RemoteError):
            raise
        except Exception as error:
            failures += 1
            _pause(url, error, failures, _ATTEMPTS_TO_READ)


def _pause(url: str, error: Exception, failures: int, attempts: int) -> None:
    """Waits before the next attempt; raises where there is none.

    Every file system has exceptions of its own, of libraries that are not here to be named.
    """
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise FileNotFoundError(f"{shown(url)}: no such file") from None
    refused = isinstance(error, PermissionError) or (
        isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    )
    if refused or failures >= attempts:
        text = " ".join(str(error).split())[:300].replace(url, shown(url))
        raise RemoteError(f"{shown(url)}: {text or type(error).__name__}") from None
    time.sleep(min(_PAUSE_SECONDS * 2 ** (failures - 1), _MAX_PAUSE_SECONDS))
