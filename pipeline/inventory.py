"""Inventory: what is in the files that were listed, each identified by its content.

    files = take_inventory(list_sources(...), limits, store, known=files_of_the_plan_before)

Reading a large collection for the first time takes hours, so what was found is written down now and
then: a call that is killed is continued by the next.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import Store
from pipeline.decode.decoder import DecodeLimits
from pipeline.shards.table import read_table
from pipeline.sources.content import side_by_side
from pipeline.sources.file import SourceFile
from pipeline.sources.looking import Known, look_into
from tokenizer.settings import UserError

_JOURNAL = "tmp/inventory.parquet"
_JOURNAL_SECONDS = 30.0
_WRITING_SHARE = 0.05  # of the time, at most
_SHOWN_PROBLEMS = 5


def take_inventory(
    listed: Sequence[SourceFile],
    limits: DecodeLimits,
    store: Store,
    known: Iterable[SourceFile],
    say: Callable[[str], object],
) -> list[SourceFile]:
    """The files, tars replaced by what is in them, sorted by uri, each location once.

    What is `known` and unchanged is not read. `say` is told how far it is, and the first problems.
    UserError when none of the files can be read.
    """
    look = partial(look_into, limits=limits, known=Known([*known, *_read_journal(store)]))
    found: dict[str, SourceFile] = {}
    next_save = time.monotonic() + _JOURNAL_SECONDS
    for number, group in enumerate(side_by_side(look, listed), 1):
        for file in group:
            found.setdefault(file.location, file)
        started = time.monotonic()
        if started > next_save:
            _write_journal(found.values(), store)
            say(f"plan: {number:,} of {len(listed):,} files looked at")
            ended = time.monotonic()
            next_save = ended + max(_JOURNAL_SECONDS, (ended - started) / _WRITING_SHARE)
    problems = [file.problem for file in found.values() if file.problem]
    if len(problems) == len(found):
        raise UserError(problems[0] if problems else "the sources hold no videos or images")
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(f"plan: {problem}")
    return sorted(found.values(), key=lambda file: (file.uri, file.location))


def forget_inventory(store: Store) -> None:
    """Deletes what was written down, once a plan says it."""
    store.storage.delete(_JOURNAL)


def _write_journal(files: Iterable[SourceFile], store: Store) -> None:
    sound = [asdict(file) for file in files if not file.problem]
    if sound:
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(sound), stream, write_page_checksum=True)
        store.storage.put(_JOURNAL, stream.getvalue())


def _read_journal(store: Store) -> list[SourceFile]:
    """What a call that did not end had found; nothing, where that is of no use."""
    try:
        rows = read_table(store.storage.read(_JOURNAL)).to_pylist()
        return [SourceFile(**row | {"sidecars": tuple(row["sidecars"])}) for row in rows]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return []
