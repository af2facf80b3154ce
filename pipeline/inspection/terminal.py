"""The terminal: tables and lines as text that cannot steer it.

Names and captions come from other people's files: they are shown as text, never as markup, and
control characters are replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 1000


def print_line(text: str) -> None:
    _console().print(_shown(text))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, unless it has no rows; a header that begins with `#` is a column of numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in header:
        table.add_column(_shown(name.lstrip("#")), justify="right" if name[:1] == "#" else "left")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row))
    if table.row_count:
        console = _console()
        console.print()
        console.print(table)


def _console() -> Console:
    """As wide as the terminal; in a pipe, as wide as the table, so that lines can be searched."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(soft_wrap=True, highlight=False, width=width)


def _shown(text: str) -> Text:
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
