"""SQL over what a dataset says of itself: one question, read-only, with limits.

    result = query("runs/demo/data", "select label, count(*) from manifest group by label")
    result.columns, result.rows

    manifest    a row per clip ever considered
    shards      a row per shard of `shards.json`
    commits     a row per unit of work: phase, accounts, host, seconds

DuckDB runs in memory and sees these three tables and no file or network; its settings are locked.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.commit_sum import COMMITS_FOLDER, read_commits
from pipeline.inspection.accounts import read_accounts
from pipeline.shards.format import SHARDS_FILE, parse_declaration
from pipeline.storage import Storage, open_storage
from tokenizer.settings import UserError

TABLES = ("manifest", "shards", "commits")
MAX_ROWS = 100_000
TIMEOUT_SECONDS, MEMORY_BYTES = 60.0, 2 << 30
_COMMITS = pa.schema(
    [
        *((name, pa.string()) for name in ("unit", "phase", "host", "shard", "bucket", "split")),
        *((name, pa.int64()) for name in ("n_in", "n_kept", "n_dropped", "n_error", "size_bytes")),
        *((name, pa.float64()) for name in ("seconds", "started_at", "finished_at")),
    ]
)


@dataclass(frozen=True)
class Result:
    """The answer: names of columns, and rows of plain values."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    is_cut: bool
    """Whether there were more than MAX_ROWS rows."""


def query(
    root: str | Path,
    sql: str,
    *,
    seconds: float = TIMEOUT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Result:
    """Answers one SELECT; UserError, in one line, when it is not one, fails or takes too long."""
    try:
        import duckdb
    except ImportError:
        raise UserError(
            "--sql needs the package duckdb; install it with `pip install duckdb`"
        ) from None
    storage = open_storage(root)
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{memory_bytes >> 20}MiB",
            "threads": os.cpu_count() or 1,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "temp_directory": "",
        },
    )
    timer = threading.Timer(seconds, connection.interrupt)
    with ExitStack() as stack:
        stack.callback(connection.close)
        stack.callback(timer.cancel)
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UserError("--sql takes one SELECT; the tables are manifest, shards, commits")
            for name in TABLES:
                if name in sql.lower():
                    connection.register(name, _table(storage, name))
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            timer.start()
            cursor = connection.execute(statements[0])
            rows = cursor.fetchmany(MAX_ROWS + 1)
            columns = [name for name, *_ in cursor.description or []]
        except duckdb.InterruptException:
            raise UserError(f"--sql: stopped after {seconds:g} s; ask for less") from None
        except (duckdb.Error, RuntimeError, UnicodeError) as error:
            raise UserError(f"--sql: {_one_line(error)}") from None
    return Result(columns, rows[:MAX_ROWS], len(rows) > MAX_ROWS)


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers, strings, lists, objects, null; all else as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(each) for each in value]
    return str(value)


def _table(storage: Storage, name: str) -> Any:
    if name == "manifest":
        return read_accounts(storage)
    return _shards(storage) if name == "shards" else _commits(storage)


def _shards(storage: Storage) -> pa.Table:
    try:
        text = storage.read(SHARDS_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        raise UserError(f"{storage.root}: no {SHARDS_FILE}; the build is not finished") from None
    _, _, _, shards = parse_declaration(text, f"{storage.root}/{SHARDS_FILE}")
    if not shards:
        raise UserError(f"{storage.root}: no shards")
    return pa.Table.from_pylist([asdict(shard) for shard in shards])


def _commits(storage: Storage) -> pa.Table:
    rows = []
    names = [name for name in storage.names(COMMITS_FOLDER) if name.endswith(".json")]
    for name, record in read_commits(storage, names):
        result, run = record.get("result") or {}, record.get("run") or {}
        part = (result.get("parts") or [{}])[0]
        facts = {**run, **result, "unit": name.removesuffix(".json")}
        facts |= {"shard": part.get("path"), "size_bytes": part.get("size_bytes")}
        rows.append({field.name: facts.get(field.name) for field in _COMMITS})
    try:
        return pa.Table.from_pylist(rows, schema=_COMMITS)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"{storage.root}/{COMMITS_FOLDER}: damaged commits ({error})") from None


def _one_line(error: Exception) -> str:
    """The error's first line, which says what is wrong; the rest draws where."""
    text = str(error).strip().partition("\n")[0]
    try:
        return str(json.loads(text)["exception_message"])
    except (ValueError, KeyError, TypeError):
        return text
