"""Plan: what goes into a build; each file identified by content, and grouped into units.

A file that was planned before, by its content, keeps its unit and its place wherever it lies now;
new files fill new units behind the old ones, so a grown collection makes new work only. Files that
came after shards were made are of a later *generation*, which gets shards of its own, so that those
that exist stay as they are. The same content twice is one source; a source that was removed stays
out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.captions import find_sidecar
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.removal import removed_sources
from pipeline.shards.format import canonical_json
from pipeline.shards.table import read_table
from pipeline.sources import SourceFile, content_id
from tokenizer.settings import UserError

PLAN_FILE = "plan.parquet"


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A file to annotate; `source_id` is the sha256 of its content, `unit` its annotate unit.

    `skipped` is "" or why the file is not annotated: `duplicate` or `removed`. `gaps` is JSON: how
    many places in shards a removed source had, by split and bucket. They stay empty, so that the
    shards of others need not be cut anew.
    """

    source_id: str
    uri: str
    path: str
    kind: str
    size_bytes: int
    mtime_ns: int
    sidecar_path: str | None
    sidecar_sha256: str | None
    unit: int
    generation: int
    skipped: str
    gaps: str = "{}"


def make_plan(
    config: BuildConfig, files: Sequence[SourceFile], store: Store
) -> list[PlannedSource]:
    """Identifies the files, writes `plan.parquet`, returns it in plan order."""
    earlier = read_plan(store)
    previous = {row.path: row for row in earlier if row.path}
    places = {row.source_id: place for place, row in reversed(list(enumerate(earlier)))}
    known: list[PlannedSource] = []
    fresh: list[PlannedSource] = []
    for file in files:
        stat = Path(file.path).stat()
        before = previous.get(str(file.path))
        unchanged = before and (before.size_bytes, before.mtime_ns) == (
            stat.st_size,
            stat.st_mtime_ns,
        )
        source_id = before.source_id if before and unchanged else content_id(file.path)
        if not unchanged:
            before = earlier[places[source_id]] if source_id in places else None
        sidecar = find_sidecar(file.path)
        row = PlannedSource(
            source_id=source_id,
            uri=file.uri,
            path=str(file.path),
            kind=file.kind,
            size_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            sidecar_path=str(sidecar) if sidecar else None,
            sidecar_sha256=_sha256(sidecar) if sidecar else None,
            unit=before.unit if before else -1,
            generation=before.generation if before else -1,
            skipped=before.skipped if before else "",
            gaps=before.gaps if before else "{}",
        )
        (known if row.unit >= 0 else fresh).append(row)
    latest = max((row.generation for row in earlier), default=0)
    generation = latest + (bool(earlier) and _has_shards(store))
    fresh = [replace(row, generation=generation) for row in fresh]
    listed = {row.source_id for row in known}
    known += [row for row in earlier if row.skipped == "removed" and row.source_id not in listed]
    known.sort(key=lambda row: (row.unit, places[row.source_id], row.uri))
    plan = [*known, *sorted(fresh, key=lambda row: row.uri)]
    return write_plan(_grouped(without_removed(plan, store), config), store)


def write_plan(plan: list[PlannedSource], store: Store) -> list[PlannedSource]:
    """Puts the plan in place of the earlier one; returns it."""
    table = pa.Table.from_pylist([asdict(row) for row in plan], schema=_SCHEMA)
    store.write_file(PLAN_FILE, lambda file: pq.write_table(table, file, write_page_checksum=True))
    return plan


def read_plan(store: Store) -> list[PlannedSource]:
    """The plan that was written; empty when there is none. UserError when it is another format."""
    try:
        table = read_table(store.storage.read(PLAN_FILE))
    except FileNotFoundError:
        return []
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{store.root}/{PLAN_FILE}: damaged ({str(error).splitlines()[0]}); delete it, and the "
            "next build lists and identifies the files again"
        ) from None
    if table.schema.names != _SCHEMA.names:
        raise UserError(
            f"{store.root}/{PLAN_FILE}: made by another version; build into a new folder, "
            f"with `reuse: [{store.root}]` to keep its codes"
        )
    return [PlannedSource(**row) for row in table.to_pylist()]


def units_of(plan: Iterable[PlannedSource]) -> list[list[PlannedSource]]:
    """The annotate units in plan order, skipped files left out."""
    units: dict[int, list[PlannedSource]] = {}
    for row in plan:
        if not row.skipped:
            units.setdefault(row.unit, []).append(row)
    return list(units.values())


def without_removed(plan: Sequence[PlannedSource], store: Store) -> list[PlannedSource]:
    """Marks what is not to be annotated; of a removed source not even the name is kept."""
    removed = removed_sources(store)
    fresh = {row.source_id for row in plan if row.skipped != "removed"} & removed
    gaps = _places_in_shards(store, fresh) if fresh else {}
    seen: set[str] = set()
    marked = []
    for row in plan:
        skipped = "duplicate" if row.source_id in seen else ""
        if row.source_id in removed:
            if row.skipped != "removed":
                row = replace(row, gaps=gaps.get(row.source_id, "{}"))
            row = replace(row, uri="", path="", sidecar_path=None, sidecar_sha256=None)
            skipped = skipped or "removed"
        marked.append(replace(row, skipped=skipped))
        seen.add(row.source_id)
    return marked


def _places_in_shards(store: Store, source_ids: Container[str]) -> dict[str, str]:
    """What `gaps` will say of these sources, from the selection that the shards were cut from."""
    try:
        columns = ["source_id", "outcome", "split", "bucket"]
        rows = read_table(store.storage.read("selection.parquet"), columns).to_pylist()
    except (FileNotFoundError, pa.ArrowException):
        return {}
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if row["source_id"] in source_ids and row["outcome"] == "kept":
            place = f"{row['split']}/{row['bucket']}"
            counts.setdefault(row["source_id"], Counter())[place] += 1
    return {source: canonical_json(dict(each)).decode() for source, each in counts.items()}


def _has_shards(store: Store) -> bool:
    return any(unit.startswith("tokenize-") for unit in store.committed())


def _grouped(plan: list[PlannedSource], config: BuildConfig) -> list[PlannedSource]:
    next_unit = max((row.unit for row in plan), default=-1) + 1
    result, filled = [], 0
    for row in plan:
        unit = row.unit
        if unit < 0:
            unit = next_unit + filled // config.annotate.sources_per_unit
            filled += not row.skipped
        result.append(replace(row, unit=unit))
    return result


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("path", pa.string()),
        ("kind", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sidecar_path", pa.string()),
        ("sidecar_sha256", pa.string()),
        ("unit", pa.int64()),
        ("generation", pa.int64()),
        ("skipped", pa.string()),
        ("gaps", pa.string()),
    ]
)
