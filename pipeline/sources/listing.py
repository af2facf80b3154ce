"""Listing: what `sources` names becomes files, sorted, each once.

for file in list_sources(["films", "stills/*.png", "s3://lab/{000..099}.tar", "web.parquet"]):
    print(file.kind, file.uri, file.location)
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence

from pipeline.decode.decoder import DecodeLimits
from pipeline.sources.braces import expand_braces
from pipeline.sources.content import stated
from pipeline.sources.endings import MANIFEST_ENDINGS, TAR_ENDING, known_endings, media_kind
from pipeline.sources.file import SourceFile
from pipeline.sources.folders import (
    files_below_url,
    files_in_folder,
    files_matching,
    files_matching_url,
    local_file,
    remote_file,
)
from pipeline.sources.location import LOCAL_PROTOCOLS, ending_of, is_url
from pipeline.sources.manifest import list_manifest
from pipeline.sources.remote import matching
from pipeline.sources.urls import is_http, shown, url_path
from tokenizer.settings import UserError


def list_sources(patterns: Sequence[str], limits: DecodeLimits | None = None) -> list[SourceFile]:
    """The files of folders (all below them), files, globs, brace ranges, manifests and tars.

    They are sorted by uri; one that several patterns reach is listed once, as the first of them
    has it. Hidden files and folders are left out; so are other kinds of files, except where one is
    named itself, which is an error; tars and manifests are those that a pattern names by its
    ending. Nothing is opened but manifests.

    A row of a manifest whose file is missing is a file with a `problem`. Raises UserError where all
    are, for what else is missing, a folder without any such file, a glob that matches none, and a
    manifest that is not as it should be.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        files = list(stated(_files_of(pattern, limits or DecodeLimits())))
        missing = [file for file in files if file.problem]
        if missing and (len(missing) == len(files) or missing[0].kind == "tar"):
            raise UserError(missing[0].problem)
        for file in files:
            found.setdefault(file.location, file)
    return sorted(found.values(), key=lambda file: (file.uri, file.location))


def _files_of(pattern: str, limits: DecodeLimits) -> Iterable[SourceFile]:
    if is_url(pattern) and "::" in pattern:
        raise UserError(
            f"{shown(pattern)}: URLs in a chain (::) are not taken; name one file system"
        )
    if pattern.startswith(LOCAL_PROTOCOLS):
        pattern = pattern.partition("://")[2]
    path = os.path.expanduser(pattern)
    if not is_url(pattern) and os.path.exists(path):  # whatever marks its name has
        return _local_files(path, limits)
    files: list[SourceFile] = []
    for each in expand_braces(pattern):
        try:
            listed = _remote_files if is_url(each) else _local_files
            files += listed(each, limits)
        except FileNotFoundError:
            raise UserError(_missing(each)) from None
        except OSError as error:
            raise UserError(f"{error}; nothing was planned") from None
    return files


def _local_files(pattern: str, limits: DecodeLimits) -> Iterable[SourceFile]:
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        return files_in_folder(path)
    if os.path.isfile(path):
        if _is_table(path):
            return _files_in_table(os.path.abspath(path), limits)
        _check_name(pattern)
        return [local_file(path, os.path.dirname(path))]
    if not glob.has_magic(path):
        raise FileNotFoundError(path)
    if not _is_table(pattern):
        return files_matching(path)
    tables = sorted(each for each in glob.glob(path, recursive=True) if os.path.isfile(each))
    return _files_in_tables(pattern, map(os.path.abspath, tables), limits)


def _remote_files(pattern: str, limits: DecodeLimits) -> Iterable[SourceFile]:
    is_glob = "*" in pattern or (glob.has_magic(pattern) and not is_http(pattern))
    if is_glob and _is_table(pattern):
        tables = [url for url, facts in matching(pattern).items() if facts is not None]
        return _files_in_tables(pattern, tables, limits)
    if is_glob:
        files = files_matching_url(pattern)
        if not files:
            raise UserError(
                f"{shown(pattern)}: the pattern matches no videos or images; {known_endings()}"
            )
        return files
    if _is_table(pattern):
        return _files_in_table(pattern, limits)
    if media_kind(pattern):
        return [remote_file(pattern)]
    files = files_below_url(pattern)
    if not files:
        _check_name(pattern)
    return files


def _files_in_tables(pattern: str, tables: Iterable[str], limits: DecodeLimits) -> list[SourceFile]:
    files = [file for table in tables for file in _files_in_table(table, limits)]
    if not files:
        raise UserError(f"{shown(pattern)}: the pattern matches no file")
    return files


def _files_in_table(location: str, limits: DecodeLimits) -> Iterable[SourceFile]:
    """The files that a manifest names, or the tar."""
    if ending_of(location) != TAR_ENDING:
        return list_manifest(location, limits)
    name = url_path(location) if is_url(location) else location
    return [SourceFile(uri=os.path.basename(name), location=location, kind="tar")]


def _is_table(name: str) -> bool:
    return ending_of(name) in (TAR_ENDING, *MANIFEST_ENDINGS)


def _check_name(pattern: str) -> None:
    if media_kind(pattern) is None:
        raise UserError(
            f"{shown(pattern)}: not a video or an image by its name, nor a folder of them; "
            f"{known_endings()}"
        )


def _missing(pattern: str) -> str:
    return f"{shown(pattern)}: no such file or folder; give another one in sources"
