"""Locations: where a file lies, as one line of text that travels in plans and between processes.

    /films/a.mp4                          a file of this machine
    s3://lab/films/a.mp4                  a file behind a URL
    tar+1536+8000.mp4:/films/0.tar        8,000 bytes from byte 1,536 of a tar on, which may lie
    tar+1536+8000.mp4:s3://lab/0.tar      anywhere: a member

Whatever goes wrong is an OSError whose text is one line; TimeoutError when it took too long.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.sources.file import FileFacts
from pipeline.sources.remote import PIECE_BYTES, remote_facts, remote_pieces
from pipeline.sources.urls import is_http, shown

LOCAL_PROTOCOLS = ("file://", "local://")
_IN_MEMORY_BYTES = 64 << 20
_MEMBER = re.compile(r"tar\+([0-9]{1,18})\+([0-9]{1,18})(\.[a-z0-9]{1,16})?:(.+)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A run of bytes of a tar; `ending` is that of its name, such as .mp4, or nothing."""

    tar: str
    offset: int
    size_bytes: int
    ending: str = ""

    @property
    def location(self) -> str:
        return f"tar+{self.offset}+{self.size_bytes}{self.ending}:{self.tar}"


class TookTooLong(TimeoutError):
    """A file that takes longer to read than it may; a disk's own time-outs are another thing."""


class FileTooLarge(OSError):
    """A file of more bytes than it may have."""


class Changed(OSError):
    """What lies at a location is not what was listed there."""


def member_of(location: str) -> Member | None:
    """What a location says when it is that of a member of a tar."""
    match = _MEMBER.fullmatch(location)
    if match is None:
        return None
    return Member(match[4], int(match[1]), int(match[2]), match[3] or "")


def ending_of(location: str) -> str:
    """The last ending of the name of a file, in small letters, such as .mp4."""
    member = member_of(location)
    if member is not None:
        return member.ending
    if is_http(location):
        location = location.partition("?")[0].partition("#")[0]
    return posixpath.splitext(location)[1].lower()


def is_url(location: str) -> bool:
    return "://" in location and not location.startswith(("/", "tar+"))


def is_local_file(location: str) -> bool:
    """Whether it is a file of this machine, whole."""
    return not is_url(location) and member_of(location) is None


def facts_of(location: str) -> FileFacts:
    """Size and stamp of a file; of a member, that of its tar with the size in it."""
    member = member_of(location)
    if member is not None:
        tar = facts_of(member.tar)
        return FileFacts(member.size_bytes, member_stamp(tar.size_bytes or 0, tar.stamp))
    if is_url(location):
        return remote_facts(location)
    try:
        facts = os.stat(location)
    except ValueError as error:
        raise OSError(f"{location!r}: {error}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{location}: not a plain file")
    return FileFacts(facts.st_size, str(facts.st_mtime_ns))


def member_stamp(tar_bytes: int, tar_stamp: str) -> str:
    """The stamp of a tar's members."""
    return f"{tar_bytes} {tar_stamp}" if tar_stamp else ""


def pieces_of(location: str, max_bytes: int, seconds: float) -> Iterator[bytes]:
    """The bytes of a file in pieces; FileTooLarge where they are more than `max_bytes`."""
    deadline = time.monotonic() + seconds
    num_bytes = 0
    for piece in _pieces(location, max_bytes):
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise FileTooLarge(f"{shown(location)}: more than {max_bytes} bytes")
        yield piece
        if time.monotonic() > deadline:
            raise TookTooLong(f"{shown(location)}: reading it takes longer than {seconds:g} s")
    member = member_of(location)
    if member is not None and num_bytes != member.size_bytes:
        raise Changed(f"{shown(member.tar)}: shorter than when it was listed")


@contextmanager
def fetched(location: str, max_bytes: int, seconds: float) -> Iterator[IO[bytes]]:
    """A file's bytes in a file without a name, which ends with whoever has it open.

    It lies in memory, where it is known to be small, else in $TMPDIR.
    """
    with _nameless(location) as file:
        for piece in pieces_of(location, max_bytes, seconds):
            file.write(piece)
        file.flush()
        yield file


def _nameless(location: str) -> IO[bytes]:
    member = member_of(location)
    if member is not None and member.size_bytes <= _IN_MEMORY_BYTES:
        return os.fdopen(os.memfd_create("tessera"), "w+b")
    return tempfile.TemporaryFile(prefix="tessera-")


def path_of(file: IO[bytes]) -> Path:
    """A path by which this process can open a file that has no name."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _pieces(location: str, max_bytes: int) -> Iterator[bytes]:
    member = member_of(location)
    size = facts_of(location).size_bytes if is_local_file(location) else None
    size = member.size_bytes if member is not None else size
    if size is not None and size > max_bytes:
        raise FileTooLarge(f"{shown(location)}: {size} bytes, more than {max_bytes}")
    if member is not None and is_url(member.tar):
        yield from remote_pieces(member.tar, member.offset, member.size_bytes)
    elif is_url(location):
        yield from remote_pieces(location)
    else:
        with open(location if member is None else member.tar, "rb") as file:
            file.seek(member.offset if member is not None else 0)
            left = member.size_bytes if member is not None else max_bytes + 1
            while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
                yield piece
                left -= len(piece)
