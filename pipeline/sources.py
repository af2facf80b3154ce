"""Sources: the video and image files that folders, files and globs name, each known by its content.

for file in list_sources(["films", "stills/*.png"]):
    print(file.kind, file.uri, content_id(file.path))
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizer.settings import UserError

VIDEO_EXTENSIONS = [
    ".3gp",
    ".avi",
    ".flv",
    ".h264",
    ".m2ts",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
]
IMAGE_EXTENSIONS = [".jpeg", ".jpg", ".png", ".webp"]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to look at; `kind` is what its name promises.

    `uri` is its path below the folder that was named, so that a dataset does not depend on where
    the collection lies; for a file that was named itself it is its name.
    """

    uri: str
    path: Path
    kind: Literal["video", "image"]
    size_bytes: int


def list_sources(patterns: Sequence[str]) -> list[SourceFile]:
    """The video and image files of folders (all below them), files and globs, sorted by uri.

    Hidden files and folders are left out; so are other kinds of files, except where one is named
    itself, which is an error. A file that several patterns reach is listed once.

    Raises UserError for a folder or file that is missing, a folder without any such file, a
    glob that matches none, and what may not be read.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        root, paths = _paths_of(pattern)
        for path in paths:
            absolute = os.path.abspath(path)
            if absolute not in found:
                found[absolute] = _source_file(absolute, os.path.abspath(root))
    return sorted(found.values(), key=lambda file: (file.uri, file.path))


def content_id(path: str | Path) -> str:
    """sha256 of the file's content, in hexadecimal: the same file twice is one source."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _paths_of(pattern: str) -> tuple[str, list[str]]:
    """The folder that uris are relative to, and the files."""
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        files = list(_files_below(path))
        if not files:
            raise UserError(f"{pattern}: the folder holds no videos or images; {_allowed()}")
        return path, files
    if os.path.isfile(path):
        if _kind_of(path) is None:
            raise UserError(f"{pattern}: not a video or an image by its name; {_allowed()}")
        return os.path.dirname(path), [path]
    if not glob.has_magic(path):
        raise UserError(f"{pattern}: no such file or folder; give another one in sources")
    matches = sorted(glob.glob(path, recursive=True))
    files = [match for match in matches if os.path.isfile(match) and _kind_of(match)]
    files += [file for match in matches if os.path.isdir(match) for file in _files_below(match)]
    if not files:
        raise UserError(f"{pattern}: the pattern matches no videos or images; {_allowed()}")
    fixed = path[: min(path.index(mark) for mark in "*?[" if mark in path)]
    return os.path.dirname(fixed), files


def _files_below(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and _kind_of(name) and os.path.isfile(path):
                yield path


def _source_file(path: str, root: str) -> SourceFile:
    kind = _kind_of(path)
    assert kind is not None, path
    try:
        size_bytes = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    uri = Path(os.path.relpath(path, root)).as_posix()
    return SourceFile(uri=uri, path=Path(path), kind=kind, size_bytes=size_bytes)


def _kind_of(name: str) -> Literal["video", "image"] | None:
    extension = os.path.splitext(name)[1].lower()
    if extension in VIDEO_EXTENSIONS:
        return "video"
    return "image" if extension in IMAGE_EXTENSIONS else None


def _allowed() -> str:
    return f"known endings: {' '.join(VIDEO_EXTENSIONS + IMAGE_EXTENSIONS)}"
