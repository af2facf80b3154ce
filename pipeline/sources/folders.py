"""Folders and globs, on a disk and behind URLs: their videos and images, and their sidecars."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from pipeline.captions import find_sidecars
from pipeline.sources.endings import known_endings, media_kind
from pipeline.sources.file import FileFacts, SourceFile
from pipeline.sources.location import facts_of
from pipeline.sources.remote import Listing, listed_below, listed_in, matching
from pipeline.sources.urls import is_http, url_path
from tokenizer.settings import UserError


def files_in_folder(path: str) -> Iterator[SourceFile]:
    """The videos and images below a folder; UserError when there are none."""
    files = list(_paths_below(path))
    if not files:
        raise UserError(f"{path}: the folder holds no videos or images; {known_endings()}")
    return (local_file(file, path) for file in files)


def files_matching(pattern: str) -> Iterator[SourceFile]:
    """Those that match a glob or lie below folders that do; UserError when there are none."""
    matches = sorted(glob.glob(pattern, recursive=True))
    files = [match for match in matches if os.path.isfile(match) and media_kind(match)]
    files += [file for match in matches if os.path.isdir(match) for file in _paths_below(match)]
    if not files:
        raise UserError(f"{pattern}: the pattern matches no videos or images; {known_endings()}")
    fixed = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
    return (local_file(file, os.path.dirname(fixed)) for file in files)


def local_file(path: str, root: str) -> SourceFile:
    """A video or image of this machine."""
    path, root = os.path.abspath(path), os.path.abspath(root)
    try:
        facts = facts_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    uri = Path(os.path.relpath(path, root)).as_posix()
    return _file(uri, path, facts, find_sidecars(path, os.path.isfile))


def files_below_url(url: str) -> list[SourceFile]:
    """The videos and images below a folder behind a URL; none when there are none."""
    return _remote_files(url.rstrip("/"), listed_below(url))


def files_matching_url(pattern: str) -> list[SourceFile]:
    """Those that match a glob behind a URL, or lie below folders that do."""
    rows: Listing = {}
    folders = set()
    for url, facts in matching(pattern).items():
        if facts is None:
            rows |= listed_below(url)
        else:
            rows[url] = facts
            folders.add(posixpath.dirname(url))
    fixed = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
    beside = {url: facts for folder in folders for url, facts in listed_in(folder).items()}
    return _remote_files(posixpath.dirname(fixed), rows, beside)


def remote_file(url: str) -> SourceFile:
    """A video or image behind a URL that was named itself; OSError when it cannot be reached."""

    def is_there(name: str) -> bool:
        try:
            facts_of(name)
        except OSError:
            return False
        return True

    path, _, query = url.partition("?") if is_http(url) else (url, "", "")
    sidecars = () if query else find_sidecars(path, is_there)  # a signature is for one file
    return _file(posixpath.basename(url_path(url)), url, facts_of(url), sidecars)


def _remote_files(root: str, rows: Listing, beside: Listing | None = None) -> list[SourceFile]:
    """The visible videos and images of a listing, with the sidecars that are listed as well."""
    listed = rows | (beside or {})
    files = []
    for url, facts in rows.items():
        uri = url[len(root) :].lstrip("/")
        uri = unquote(uri) if is_http(url) else uri
        if media_kind(url) and not any(part.startswith(".") for part in uri.split("/")):
            sidecars = find_sidecars(url, listed.__contains__)
            stamps = [each.stamp if (each := listed[name]) else "" for name in sidecars]
            stamp = " ".join(stamps) if all(stamps) else ""
            files.append(_file(uri, url, facts, sidecars, stamp))
    return files


def _file(
    uri: str,
    location: str,
    facts: FileFacts | None,
    sidecars: tuple[str, ...],
    sidecar_stamp: str = "",
) -> SourceFile:
    kind = media_kind(location)
    assert kind is not None, location
    return SourceFile(
        uri=uri,
        location=location,
        kind=kind,
        size_bytes=facts.size_bytes if facts else None,
        stamp=facts.stamp if facts else "",
        sidecars=sidecars,
        sidecar_stamp=sidecar_stamp,
    )


def _paths_below(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and media_kind(name) and os.path.isfile(path):
                yield path
