"""By source: what became of the clips of each file, from the accounts alone.

for row in by_source("runs/demo/data"):
    row.uri, row.kept, row.dropped, row.errors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspection.accounts import read_accounts
from pipeline.storage import open_storage
from tokenizer.settings import UserError

_COLUMNS = ("source_id", "uri", "outcome", "kind", "start_seconds", "end_seconds")


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One file: clips considered, and how they ended."""

    source_id: str
    uri: str
    clips: int
    kept: int
    dropped: int
    errors: int
    seconds_kept: float


def by_source(root: str | Path) -> list[SourceRow]:
    """A row per source, by name of file; UserError when there are no accounts yet."""
    table = read_accounts(open_storage(root), _COLUMNS)
    missing = sorted(set(_COLUMNS) - set(table.schema.names))
    if missing:
        raise UserError(f"{root}: the accounts have no column {missing[0]}")
    outcome = table["outcome"].cast(pa.string())
    kept = pc.equal(outcome, "kept")
    is_video = pc.not_equal(pc.fill_null(table["kind"].cast(pa.string()), ""), "image")
    seconds = pc.subtract(table["end_seconds"], table["start_seconds"])
    counted = pa.table(
        {
            "source_id": table["source_id"],
            "uri": table["uri"],
            "kept": kept.cast(pa.int64()),
            "errors": pc.starts_with(outcome, "error:").cast(pa.int64()),
            "seconds": pc.if_else(pc.and_(kept, is_video), pc.fill_null(seconds, 0.0), 0.0),
        }
    )
    wanted = [("uri", "count"), ("kept", "sum"), ("errors", "sum"), ("seconds", "sum")]
    groups = counted.group_by(["source_id", "uri"]).aggregate(wanted)
    groups = groups.sort_by([("uri", "ascending"), ("source_id", "ascending")])
    return [
        SourceRow(
            source_id=row["source_id"],
            uri=row["uri"],
            clips=row["uri_count"],
            kept=row["kept_sum"],
            dropped=row["uri_count"] - row["kept_sum"] - row["errors_sum"],
            errors=row["errors_sum"],
            seconds_kept=row["seconds_sum"],
        )
        for row in groups.to_pylist()
    ]
