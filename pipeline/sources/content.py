"""Content: a source is known by the sha256 of its bytes, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from pipeline.captions import MAX_SIDECAR_BYTES, combined_sha256
from pipeline.decode.decoder import DecodeLimits
from pipeline.sources.file import SourceFile
from pipeline.sources.location import FileTooLarge, facts_of, pieces_of

_THREADS = 8  # requests in flight; hashing lets go of the interpreter
_BATCH = 1024
T = TypeVar("T")
U = TypeVar("U")


def content_id(location: str, limits: DecodeLimits) -> str:
    """sha256 of a file's content, in hexadecimal: the same file twice is one source.

    Reads no more than the limits allow. Raises OSError.
    """
    return _sha256(location, limits.max_file_bytes, limits.timeout_seconds)


def stated(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """The files in order, those whose size is not known yet with size, stamp, or their problem."""
    return side_by_side(_stated, files)


def identified(file: SourceFile, limits: DecodeLimits) -> SourceFile:
    """The file with its `source_id` and the hash of what describes it, or with its problem.

    What cannot be read is known by where it should be.
    """
    try:
        if not file.problem and not file.source_id:
            file = replace(file, source_id=content_id(file.location, limits))
    except OSError as error:
        file = _with_problem(file, error)
    if file.problem:
        known_by = hashlib.sha256(f"unread: {file.location}".encode()).hexdigest()
        return replace(file, source_id=known_by)
    return replace(file, sidecar_sha256=file.sidecar_sha256 or _description_sha256(file, limits))


def side_by_side(call: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`map` by several threads, in order; few items are held at a time."""
    waiting = iter(items)
    with ThreadPoolExecutor(_THREADS, "sources") as threads:
        while batch := list(islice(waiting, _BATCH)):
            yield from threads.map(call, batch)


def _stated(file: SourceFile) -> SourceFile:
    if file.problem or file.size_bytes is not None:
        return file
    try:
        facts = facts_of(file.location)
    except OSError as error:
        return replace(_with_problem(file, error), size_bytes=0)
    return replace(file, size_bytes=facts.size_bytes or 0, stamp=facts.stamp)


def _with_problem(file: SourceFile, error: OSError) -> SourceFile:
    kind = "too_large" if isinstance(error, FileTooLarge) else "open"
    kind = "timeout" if isinstance(error, TimeoutError) else kind
    return replace(file, problem=f"{file.uri}: {error}", error=kind)


def _description_sha256(file: SourceFile, limits: DecodeLimits) -> str:
    """ "" where nothing describes it; what cannot be read is an error when it is used."""
    if file.facts:
        return hashlib.sha256(file.facts.encode()).hexdigest()
    digests = []
    for location in file.sidecars:
        try:
            digests.append(_sha256(location, MAX_SIDECAR_BYTES, limits.timeout_seconds))
        except OSError:
            digests.append("unread")
    return combined_sha256(digests) if digests else ""


def _sha256(location: str, max_bytes: int, seconds: float) -> str:
    digest = hashlib.sha256()
    for piece in pieces_of(location, max_bytes, seconds):
        digest.update(piece)
    return digest.hexdigest()
