"""Plan: what goes into a build; each file identified by content, and grouped into units.

A file that was planned before, by its content, keeps its unit and its place wherever it lies now;
new files fill new units behind the old ones, so a grown collection makes new work only. Files that
came after shards were made are of a later *generation*, which gets shards of its own, so that those
that exist stay as they are. The same content twice is one source; a source that was removed stays
out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.inventory import forget_inventory, take_inventory
from pipeline.removal import removed_sources
from pipeline.shards.format import canonical_json
from pipeline.shards.table import read_table
from pipeline.sources.file import SourceFile
from tokenizer.settings import UserError

PLAN_FILE = "plan.parquet"


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A file to annotate; `source_id` is the sha256 of its content, `unit` its annotate unit.

    `skipped` is "" or why the file is not annotated: `duplicate`, `removed`, or the class of the
    error that kept it from being read, such as `error:open`; it is then known by its location.
    `gaps` is JSON: how many places in shards a removed source had, by split and bucket. They stay
    empty, so that the shards of others need not be cut anew.
    """

    source_id: str
    uri: str
    location: str
    kind: str
    size_bytes: int = 0
    stamp: str = ""
    sidecars: tuple[str, ...] = ()
    sidecar_stamp: str = ""
    sidecar_sha256: str | None = None
    facts: str = ""
    unit: int = 0
    generation: int = 0
    skipped: str = ""
    gaps: str = "{}"

    @property
    def outcome(self) -> str:
        """How a file ends that is not annotated."""
        is_error = self.skipped.startswith("error:")
        return self.skipped if is_error else f"dropped:{self.skipped}"


def make_plan(
    config: BuildConfig,
    files: Sequence[SourceFile],
    store: Store,
    say: Callable[[str], object] = str,
) -> list[PlannedSource]:
    """Identifies the files, writes `plan.parquet`, returns it in plan order."""
    earlier = read_plan(store)
    identified = take_inventory(files, config.limits, store, _known_files(earlier), say)
    previous = {row.location: row for row in earlier if row.location}
    places = {row.source_id: place for place, row in reversed(list(enumerate(earlier)))}
    known: list[PlannedSource] = []
    fresh: list[PlannedSource] = []
    for file in identified:
        before = previous.get(file.location)
        if before is None or before.source_id != file.source_id:
            before = earlier[places[file.source_id]] if file.source_id in places else None
        row = planned(file)
        if before is not None:
            row = replace(row, unit=before.unit, generation=before.generation, gaps=before.gaps)
            row = replace(row, skipped=row.skipped or before.skipped)
        (fresh if before is None else known).append(row)
    latest = max((row.generation for row in earlier), default=0)
    generation = latest + (bool(earlier) and _has_shards(store))
    fresh = [replace(row, unit=-1, generation=generation) for row in fresh]
    listed = {row.source_id for row in known}
    known += [row for row in earlier if row.skipped == "removed" and row.source_id not in listed]
    known.sort(key=lambda row: (row.unit, places[row.source_id], row.uri))
    plan = [*known, *sorted(fresh, key=lambda row: row.uri)]
    plan = write_plan(_grouped(without_removed(plan, store), config), store)
    forget_inventory(store)
    return plan


def planned(file: SourceFile) -> PlannedSource:
    """The row of an identified file, before it has a unit."""
    return PlannedSource(
        source_id=file.source_id,
        uri=file.uri,
        location=file.location,
        kind=file.kind,
        size_bytes=file.size_bytes or 0,
        stamp=file.stamp,
        sidecars=file.sidecars,
        sidecar_stamp=file.sidecar_stamp,
        sidecar_sha256=file.sidecar_sha256 or None,
        facts=file.facts,
        skipped=f"error:{file.error}" if file.problem else "",
    )


def _known_files(rows: Iterable[PlannedSource]) -> Iterator[SourceFile]:
    """The files that rows were made of; without an id, those that could not be read."""
    for row in rows:
        if row.location:
            yield SourceFile(
                uri=row.uri,
                location=row.location,
                kind="image" if row.kind == "image" else "video",
                size_bytes=row.size_bytes,
                stamp=row.stamp,
                sidecars=row.sidecars,
                sidecar_stamp=row.sidecar_stamp,
                source_id="" if row.skipped.startswith("error:") else row.source_id,
                sidecar_sha256=row.sidecar_sha256 or "",
            )


def write_plan(plan: list[PlannedSource], store: Store) -> list[PlannedSource]:
    """Puts the plan in place of the earlier one; returns it."""
    table = pa.Table.from_pylist([asdict(row) for row in plan], schema=_SCHEMA)
    store.write_file(PLAN_FILE, lambda file: pq.write_table(table, file, write_page_checksum=True))
    return plan


def read_plan(store: Store) -> list[PlannedSource]:
    """The plan that was written; empty when there is none. UserError when it is another format."""
    try:
        table = read_table(store.storage.read(PLAN_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{store.root}/{PLAN_FILE}: damaged ({str(error).splitlines()[0]}); delete it, and the "
            "next build lists and identifies the files again"
        ) from None
    if table.schema.names == _NAMES_1:
        return [_from_version_1(row) for row in table.to_pylist()]
    if not is_plan(table):
        raise UserError(
            f"{store.root}/{PLAN_FILE}: made by another version; build into a new folder, "
            f"with `reuse: [{store.root}]` to keep its codes"
        )
    rows = table.to_pylist()
    return [PlannedSource(**row | {"sidecars": tuple(row["sidecars"])}) for row in rows]


def is_plan(table: pa.Table) -> bool:
    """Whether this table has the columns of a plan, of this version or the one before."""
    return table.schema.names in (_SCHEMA.names, _NAMES_1)


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
        skipped = row.skipped if row.skipped.startswith("error:") else ""
        skipped = "duplicate" if row.source_id in seen else skipped
        if row.source_id in removed:
            if row.skipped != "removed":
                row = replace(row, gaps=gaps.get(row.source_id, "{}"))
            row = replace(row, uri="", location="", stamp="", facts="")
            row = replace(row, sidecars=(), sidecar_stamp="", sidecar_sha256=None)
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


def _from_version_1(row: dict[str, Any]) -> PlannedSource:
    """A row of the plans that knew only local files with one sidecar each."""
    sidecar = row.pop("sidecar_path")
    return PlannedSource(
        location=row.pop("path"),
        stamp=str(row.pop("mtime_ns")),
        sidecars=(sidecar,) if sidecar else (),
        **row,
    )


_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("location", pa.string()),
        ("kind", pa.string()),
        ("size_bytes", pa.int64()),
        ("stamp", pa.string()),
        ("sidecars", pa.list_(pa.string())),
        ("sidecar_stamp", pa.string()),
        ("sidecar_sha256", pa.string()),
        ("facts", pa.string()),
        ("unit", pa.int64()),
        ("generation", pa.int64()),
        ("skipped", pa.string()),
        ("gaps", pa.string()),
    ]
)
_NAMES_1 = [
    *("source_id", "uri", "path", "kind", "size_bytes", "mtime_ns", "sidecar_path"),
    *("sidecar_sha256", "unit", "generation", "skipped", "gaps"),
]
