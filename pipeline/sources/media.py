"""Media: a source's file as a decoder takes it, wherever it lies.

    with open_media("tar+1536+8000.mp4:s3://lab/0.tar", limits, source_id) as path:
        decoder.probe(path)

A file of this machine is its path, when it is still the one that was planned. Anything else is
fetched into a file that has no name, in memory where it is a member of a tar, and is checked
against the content that it was identified by. The path is good in this process alone, and nothing
is left behind when it ends, however it ends.

The file that was fetched last is kept for the next caller: a long video is decoded piece by piece.

A file that is deleted or written over after it was planned is an error of that file. A store or a
disk that is away, or refuses, says nothing about its files: `Unreachable`, and another time it may
be there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from pipeline.decode.decoder import DecodeLimits
from pipeline.decode.errors import CannotOpen, DecodeError, TimedOut, TooLarge
from pipeline.sources.content import content_id
from pipeline.sources.location import (
    Changed,
    FileTooLarge,
    TookTooLong,
    facts_of,
    fetched,
    is_local_file,
    path_of,
    pieces_of,
)
from pipeline.sources.urls import shown
from tokenizer.settings import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Unreachable(UserError):
    """What a planned file lies on cannot be read now; the message is one line."""


class _Fetched:
    """A fetched file, closed when it is neither kept nor in use."""

    def __init__(self, location: str, limits: DecodeLimits, source_id: str) -> None:
        self.source_id = source_id
        self.num_users = 1  # whoever keeps it is one
        with ExitStack() as stack:
            file = stack.enter_context(
                fetched(location, limits.max_file_bytes, limits.timeout_seconds)
            )
            if _sha256(file) != source_id:
                raise Changed(f"{shown(location)}: has changed since it was planned")
            self.path = path_of(file)
            self._stack = stack.pop_all()

    def release(self) -> None:
        self.num_users -= 1
        if not self.num_users:
            self._stack.close()


class _Kept(threading.local):
    last: _Fetched | None = None


_KEPT = _Kept()


@contextmanager
def open_media(
    location: str, limits: DecodeLimits, source_id: str, stamp: str = ""
) -> Iterator[Path]:
    """The file at a location; DecodeError `open`, `too_large` or `timeout` when there is none.

    Raises Unreachable when it may be there another time.

    A file of this machine is read for its content where its `stamp` is another one.
    """
    if is_local_file(location):
        if stamp:
            _check_content(location, limits, source_id, stamp)
        try:
            yield Path(location)
        except DecodeError as error:
            check_readable(location, limits, error)
            raise
        return
    last = _KEPT.last
    if last is None or last.source_id != source_id:
        _KEPT.last = None
        if last is not None:
            last.release()
        last = _KEPT.last = _fetch(location, limits, source_id)
    last.num_users += 1
    try:
        yield last.path
    finally:
        last.release()


def check_readable(location: str, limits: DecodeLimits, error: DecodeError) -> None:
    """Tells a bad file from a bad disk, when a decoder has failed on what may not be readable.

    Raises Unreachable when the disk fails, DecodeError `open` when the file is no more. What was
    fetched has been read; what is too large, or takes too long, is no matter of the disk.
    """
    if is_local_file(location) and not isinstance(error, (TooLarge, TimedOut)):
        with _as_decode_errors(), suppress(FileTooLarge, TookTooLong):
            for _ in pieces_of(location, limits.max_file_bytes, limits.timeout_seconds):
                pass


def _check_content(location: str, limits: DecodeLimits, source_id: str, stamp: str) -> None:
    with _as_decode_errors():
        now = facts_of(location).stamp
        if now != stamp and _content_id(location, now, limits) != source_id:
            raise Changed(f"{shown(location)}: has changed since it was planned")


@lru_cache(maxsize=64)
def _content_id(location: str, stamp: str, limits: DecodeLimits) -> str:
    """Of a file while it has this stamp."""
    return content_id(location, limits)


def _fetch(location: str, limits: DecodeLimits, source_id: str) -> _Fetched:
    with _as_decode_errors():
        return _Fetched(location, limits, source_id)


@contextmanager
def _as_decode_errors() -> Iterator[None]:
    try:
        yield
    except FileTooLarge as error:
        raise TooLarge(str(error)) from None
    except TookTooLong as error:
        raise TimedOut(str(error)) from None
    except OSError as error:
        if error.errno in _NO_SPACE:  # no fault of the file
            raise
        if isinstance(error, Changed) or _is_gone(error):
            raise CannotOpen(str(error)) from None
        raise Unreachable(f"out of reach: {error}") from None


def _is_gone(error: OSError) -> bool:
    """Whether a file is missing where others are: a disk that is not mounted misses them all."""
    if not isinstance(error, FileNotFoundError):
        return False
    if error.filename is None:  # a store's own answer
        return True
    try:
        with os.scandir(os.path.dirname(os.path.abspath(error.filename))) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
