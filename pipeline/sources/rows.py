"""Rows of a table of files: parquet, csv or jsonl, read a few thousand at a time.

    for where, row in table_rows(Path("web.parquet"), "web.parquet"):
        where          # "web.parquet, row 17": for messages
        row["url"]     # text, a number, True, False, None; in jsonl and parquet also more

Names of columns are in small letters, without blanks around them. Raises UserError, with the row,
for what is not such a table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tokenizer.settings import UserError

MAX_LINE_BYTES = 16 << 20
_MAX_COLUMNS = 1000
_BATCH = 1024
Row = dict[str, Any]


def table_rows(path: Path, name: str, ending: str) -> Iterator[tuple[str, Row]]:
    """Each row with where it is, for messages; `name` is what they call the table."""
    try:
        if ending == ".parquet":
            yield from _parquet_rows(path, name)
            return
        with open(path, "rb") as file:
            yield from (_csv_rows if ending == ".csv" else _json_rows)(file, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = _columns(file.schema_arrow.names, name)
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in zip(*(column.to_pylist() for column in batch.columns)):
                    number += 1
                    yield f"{name}, row {number}", dict(zip(columns, values))
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{name}: not a sound parquet file after row {number} ({reason})") from None


def _csv_rows(file: IO[bytes], name: str) -> Iterator[tuple[str, Row]]:
    lines = _Lines(file, name)
    reader = csv.reader((text for _, text in lines), strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not columns:
                columns = _columns(cells, name)
            elif cells:
                where = f"{name}, line {reader.line_num}"
                if len(cells) != len(columns):
                    raise UserError(
                        f"{where}: {len(cells)} cells, where the header has {len(columns)}"
                    )
                yield where, {column: cell or None for column, cell in zip(columns, cells)}
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}") from None


def _json_rows(file: IO[bytes], name: str) -> Iterator[tuple[str, Row]]:
    for number, text in _Lines(file, name):
        where = f"{name}, line {number}"
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except RecursionError:
            raise UserError(f"{where}: nested too deeply") from None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be a mapping of names to values")
        yield where, dict(zip(_columns(list(row), where), row.values()))


class _Lines:
    """The lines of a UTF-8 file with their numbers, none of them endless."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name

    def __iter__(self) -> Iterator[tuple[int, str]]:
        number = 0
        while line := self._file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise UserError(f"{self._name}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{self._name}, line {number}: not UTF-8 text") from None


def _columns(names: Sequence[str], where: str) -> list[str]:
    """The names of columns as they are looked up; UserError when two are the same."""
    columns = [str(name).strip().lower() for name in names]
    if len(columns) > _MAX_COLUMNS:
        raise UserError(f"{where}: {len(columns)} columns; the limit is {_MAX_COLUMNS}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: two columns are called {twice!r}; columns: {', '.join(columns)}")
    return columns
