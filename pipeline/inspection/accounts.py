"""The accounts: the table of all clips ever considered, a row each, as it lies in a dataset.

    accounts = read_accounts(open_storage("runs/demo/data"), ["outcome", "motion"])

That is `manifest.parquet`, or `selection.parquet` while shards are still being made. Columns are
read by name, and those that an older dataset lacks are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage
from tokenizer.settings import UserError

MANIFEST_FILE, SELECTION_FILE = "manifest.parquet", "selection.parquet"
NOT_SCORES = ("start_seconds", "end_seconds", "fps")


def accounts_file(storage: Storage) -> str | None:
    """The name of the file with the accounts; None when there are none yet."""
    names = (MANIFEST_FILE, SELECTION_FILE)
    return next((name for name in names if storage.size(name) is not None), None)


def read_accounts(storage: Storage, columns: Iterable[str] | None = None) -> pa.Table:
    """The accounts, or these columns of them; UserError when there are none, or are damaged."""
    name = accounts_file(storage)
    if name is None:
        raise UserError(f"{storage.root}: has no {MANIFEST_FILE}; is it a dataset?")
    try:
        with storage.open(name) as file:
            source = pq.ParquetFile(file)
            present = source.schema_arrow.names
            wanted = present if columns is None else [each for each in columns if each in present]
            return source.read(columns=wanted)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise unreadable(storage, name, error) from None


def score_columns(accounts: pa.Table | pa.Schema) -> list[str]:
    """The columns of the accounts that are scores."""
    schema = accounts.schema if isinstance(accounts, pa.Table) else accounts
    return [
        field.name
        for field in schema
        if field.type == pa.float64() and field.name not in NOT_SCORES
    ]


def unreadable(storage: Storage, name: str, error: Exception) -> UserError:
    """What is said of a damaged file, in one line whatever its reader said."""
    return UserError(f"{storage.root}/{name}: cannot be read ({' '.join(str(error).split())})")
