"""Plan: what goes into a build; each file identified by content, and grouped into units.

A file that was planned before keeps its unit; new files fill new units behind the old ones, so a
grown collection makes new work only. The same content twice is one source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.captions import find_sidecar
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.sources import SourceFile, content_id

PLAN_FILE = "plan.parquet"


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A file to annotate; `source_id` is the sha256 of its content, `unit` its annotate unit."""

    source_id: str
    uri: str
    path: str
    kind: str
    size_bytes: int
    mtime_ns: int
    sidecar_path: str | None
    sidecar_sha256: str | None
    unit: int
    duplicate: bool


def make_plan(
    config: BuildConfig, files: Sequence[SourceFile], store: Store
) -> list[PlannedSource]:
    """Identifies the files, writes `plan.parquet`, returns it in plan order."""
    previous = {row.path: row for row in read_plan(store)}
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
            unit=before.unit if before and unchanged else -1,
            duplicate=False,
        )
        (known if row.unit >= 0 else fresh).append(row)
    plan = _without_duplicates([*sorted(known, key=_plan_order), *sorted(fresh, key=_plan_order)])
    plan = _grouped(plan, config.annotate.sources_per_unit)
    columns = [asdict(row) for row in plan]
    store.write_file(
        PLAN_FILE, lambda file: pq.write_table(pa.Table.from_pylist(columns, schema=_SCHEMA), file)
    )
    return plan


def read_plan(store: Store) -> list[PlannedSource]:
    """The plan on disk; empty when there is none."""
    path = store.root / PLAN_FILE
    if not path.exists():
        return []
    return [PlannedSource(**row) for row in pq.read_table(path).to_pylist()]


def units_of(plan: Iterable[PlannedSource]) -> list[list[PlannedSource]]:
    """The annotate units in plan order, duplicates left out."""
    units: dict[int, list[PlannedSource]] = {}
    for row in plan:
        if not row.duplicate:
            units.setdefault(row.unit, []).append(row)
    return list(units.values())


def _plan_order(row: PlannedSource) -> tuple[int, str]:
    return row.unit, row.uri


def _without_duplicates(plan: list[PlannedSource]) -> list[PlannedSource]:
    seen: set[str] = set()
    marked = []
    for row in plan:
        marked.append(PlannedSource(**(asdict(row) | {"duplicate": row.source_id in seen})))
        seen.add(row.source_id)
    return marked


def _grouped(plan: list[PlannedSource], sources_per_unit: int) -> list[PlannedSource]:
    next_unit = max((row.unit for row in plan), default=-1) + 1
    result, filled = [], 0
    for row in plan:
        unit = row.unit
        if unit < 0:
            unit = next_unit + filled // sources_per_unit
            filled += not row.duplicate
        result.append(PlannedSource(**(asdict(row) | {"unit": unit})))
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
        ("duplicate", pa.bool_()),
    ]
)
