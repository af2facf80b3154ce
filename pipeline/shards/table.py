"""Tables of a dataset, read from parquet.

Read by file, not by pyarrow's dataset engine: that one starts threads which at times outlive the
interpreter and abort it, and imports pandas, for files that are read whole anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def read_table(source: Any, columns: Sequence[str] | None = None) -> Any:
    """The pyarrow Table of a path, an open file or its bytes, with all or some columns.

    Raises pyarrow's errors for what is no parquet, and ArrowKeyError for a column it has not.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = pa.BufferReader(source) if isinstance(source, bytes) else source
    with pq.ParquetFile(given, page_checksum_verification=True) as file:
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
        return file.read(columns=None if columns is None else list(columns))
