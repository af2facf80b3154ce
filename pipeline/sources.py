"""Sources: the files of a build, from folders, files and globs; identified by their content."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizer.settings import UserError

VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"]
)
IMAGE_SUFFIXES = frozenset([".jpeg", ".jpg", ".png", ".webp"])


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to build from; `uri` is its path below the folder that was named."""

    uri: str
    path: str
    kind: Literal["video", "image"]
    size_bytes: int


def list_sources(patterns: Sequence[str]) -> list[SourceFile]:
    """The videos and images that the patterns name, each once, sorted by uri.

    Raises UserError when a pattern leads nowhere, or to no video or image.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        files = _files_of(os.path.expanduser(pattern))
        if not files:
            known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
            raise UserError(f"sources: {pattern} holds no video or image (known: {known})")
        for path, uri in files:
            absolute = os.path.abspath(path)
            found.setdefault(
                absolute,
                SourceFile(
                    uri=uri,
                    path=absolute,
                    kind="image" if _suffix(path) in IMAGE_SUFFIXES else "video",
                    size_bytes=os.path.getsize(path),
                ),
            )
    return sorted(found.values(), key=lambda file: (file.uri, file.path))


def content_id(path: str | Path) -> str:
    """sha256 of the file's bytes: the same video under another name is the same source."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_of(pattern: str) -> list[tuple[str, str]]:
    """(path, uri) of the media files of a folder, a file or a glob."""
    if os.path.isdir(pattern):
        return [
            (os.path.join(folder, name), os.path.relpath(os.path.join(folder, name), pattern))
            for folder, _, names in os.walk(pattern)
            for name in names
            if _is_media(name) and os.path.isfile(os.path.join(folder, name))
        ]
    if os.path.isfile(pattern):
        return [(pattern, os.path.basename(pattern))] if _is_media(pattern) else []
    if not glob.has_magic(pattern):
        raise UserError(f"sources: {pattern}: no such file or folder")
    fixed = pattern.split("*", 1)[0].split("?", 1)[0].split("[", 1)[0]
    root = os.path.dirname(fixed)
    matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    return [(path, os.path.relpath(path, root or ".")) for path in matches if _is_media(path)]


def _is_media(name: str) -> bool:
    return _suffix(name) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
