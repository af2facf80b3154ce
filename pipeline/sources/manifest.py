"""Manifests: a table of files, with what it says of each, as a sidecar would.

    video,caption,label,license,start_seconds,end_seconds,city
    clips/a.mp4,a cat jumps,cat,CC-BY-4.0,0,2.5,Oslo
    clips/a.mp4,it lands,cat,CC-BY-4.0,2.5,4,Oslo
    s3://lab/b.mp4,,dog,,,,

One column names the file: paths are relative to the manifest, URLs are whole. `caption` (or
`text`), `label`, `license` and `consent` are as in sidecars, and so are `attributes` and `clips`
where the table can hold such. Rows with `start_seconds` and `end_seconds` describe spans. Every
other column is an attribute, if it holds text, numbers or truth values. Sidecars of these files are
not read.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.captions import MAX_SIDECAR_BYTES, SidecarError, check_facts
from pipeline.decode.decoder import DecodeLimits
from pipeline.shards.format import canonical_json
from pipeline.sources.endings import TAR_ENDING, Kind, media_kind
from pipeline.sources.file import SourceFile
from pipeline.sources.location import LOCAL_PROTOCOLS, ending_of, fetched, is_url, path_of
from pipeline.sources.rows import Row, table_rows
from pipeline.sources.urls import shown, url_path
from tokenizer.settings import UserError

FILE_COLUMNS = (
    *("path", "file", "uri", "url", "video", "image", "location", "media", "contenturl"),
    *("filename", "file_name", "filepath", "file_path"),
    *("video_path", "video_url", "video_file", "image_path", "image_url", "image_file"),
)
_TEXTS = ("caption", "label", "license", "consent")
_SPAN = ("start_seconds", "end_seconds")
_MAX_NAME = 4096


@dataclass(frozen=True)
class _Named:
    """A file, and what the rows so far say of it, as in a JSON sidecar."""

    uri: str
    kind: Kind
    facts: dict[str, Any] = field(default_factory=dict)


def list_manifest(manifest: str, limits: DecodeLimits) -> Iterator[SourceFile]:
    """The files that a manifest names, each once, in its order; nothing of them is looked at.

    UserError, with the row, for a manifest that is not as it should be; OSError when it cannot be
    fetched.
    """
    if not is_url(manifest):
        yield from _files(Path(manifest), manifest)
        return
    with fetched(manifest, limits.max_file_bytes, limits.timeout_seconds) as file:
        yield from _files(path_of(file), manifest)


def _files(path: Path, manifest: str) -> Iterator[SourceFile]:
    column = ""
    named: dict[str, _Named] = {}
    for where, row in table_rows(path, shown(manifest), ending_of(manifest)):
        column = column or _file_column(row, shown(manifest))
        location, uri = _place(row.get(column), manifest, f"{where}, column {column}")
        if location not in named:
            of_column: Kind = "image" if "image" in column else "video"
            named[location] = _Named(uri, media_kind(location) or of_column)
        try:
            _add(named[location].facts, _facts(row, column), where)
        except SidecarError as error:
            raise UserError(str(error)) from None
    if not named:
        raise UserError(f"{shown(manifest)}: names no file")
    for location, there in named.items():
        try:
            facts = canonical_json(there.facts).decode() if there.facts else ""
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{shown(manifest)}: what it says of {there.uri} is not JSON ({error})"
            ) from None
        if len(facts) > MAX_SIDECAR_BYTES:
            raise UserError(
                f"{shown(manifest)}: says more than {MAX_SIDECAR_BYTES} bytes of {there.uri}"
            )
        yield SourceFile(uri=there.uri, location=location, kind=there.kind, facts=facts)


def _file_column(row: Row, manifest: str) -> str:
    columns = ", ".join(row)[:500]
    found = [name for name in row if name in FILE_COLUMNS]
    if not found:
        raise UserError(
            f"{manifest}: no column names the files, such as path or url; columns: {columns}"
        )
    if len(found) > 1:
        raise UserError(
            f"{manifest}: {' and '.join(found)} could both name the files; rename all but one; "
            f"columns: {columns}"
        )
    return found[0]


def _place(value: Any, manifest: str, where: str) -> tuple[str, str]:
    """(location, uri) of the file that a cell names."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {value!r:.100} names no file")
    value = value.strip()
    if len(value) > _MAX_NAME or not value.isprintable() or _is_chain(value):
        raise UserError(f"{where}: {value!r:.100} is no path or URL")
    if ending_of(value) == TAR_ENDING:
        raise UserError(f"{where}: {value!r:.100} is a tar; name tars in sources")
    is_path = not is_url(value) or value.startswith(LOCAL_PROTOCOLS)
    if not is_path:
        try:
            return value, _uri(url_path(value), url_path(manifest) if is_url(manifest) else "")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not is_url(manifest):
        value = value.partition("://")[2] if is_url(value) else value
        path = os.path.abspath(os.path.join(os.path.dirname(manifest), value))
        uri = _uri(path, os.path.abspath(manifest))
        is_outside = uri == path.lstrip("/") and not os.path.isabs(value)
        return path, os.path.normpath(value).lstrip("./") if is_outside else uri
    protocol, _, place = manifest.partition("?")[0].partition("://")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(place), value))
    if value.startswith(("/", *LOCAL_PROTOCOLS)) or joined.split("/")[0] != place.split("/")[0]:
        raise UserError(
            f"{where}: {value!r:.100} lies elsewhere; a manifest behind a URL names URLs, or files "
            "relative to itself"
        )
    location = f"{protocol}://{joined}"
    return location, _uri(url_path(location), url_path(manifest))


def _is_chain(value: str) -> bool:
    """Whether it is a URL that would make one file system read from another."""
    return is_url(value) and "::" in value


def _uri(path: str, manifest: str) -> str:
    """A file's name in the dataset: its path below the manifest's folder, else all of it."""
    folder = posixpath.dirname(manifest)
    return path.removeprefix(folder + "/" if manifest else "").lstrip("/")


def _facts(row: Row, column: str) -> dict[str, Any]:
    """What a row says of its file, as a JSON sidecar would; nothing of it is checked yet."""
    row = {name: value for name, value in row.items() if name != column and _is_said(value)}
    if "caption" not in row and "text" in row:
        row["caption"] = row.pop("text")
    facts = {name: row.pop(name) for name in _TEXTS if name in row}
    span = {name: _number(row.pop(name)) for name in _SPAN if name in row}
    nested: dict[str, Any] = {
        name: row.pop(name)
        for name in ("attributes", "clips")
        if not isinstance(row.get(name), str) and name in row
    }
    attributes = {
        name: value if isinstance(value, str) else str(value).lower()
        for name, value in row.items()
        if isinstance(value, (str, int, float))
    }
    if attributes and isinstance(nested.get("attributes", {}), dict):
        nested["attributes"] = attributes | nested.get("attributes", {})
    facts |= nested
    if not span:
        return facts
    whole = {name: facts.pop(name) for name in ("license", "consent", "clips") if name in facts}
    clips = whole.get("clips", [])
    return whole | {"clips": [*clips, span | facts] if isinstance(clips, list) else clips}


def _add(known: dict[str, Any], said: dict[str, Any], where: str) -> None:
    """Adds what another row says of a file; UserError where it says otherwise."""
    check_facts(said, where)
    for name, value in said.items():
        if name == "clips":
            known.setdefault("clips", []).extend(value)
        elif known.setdefault(name, value) != value:
            raise UserError(
                f"{where}: an earlier row has another {name} for the same file; for captions of "
                "its spans give start_seconds and end_seconds"
            )


def _is_said(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> Any:
    """A number that is written as text, as all are in csv."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
