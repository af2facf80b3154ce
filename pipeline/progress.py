"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.quantities import counted

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Says on stderr what each phase did and how far it is."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
        """Yields a function to call once for each finished unit; `done` were finished before."""
        started = time.monotonic()
        skipped = f", {done} of them already committed" if done else ""
        if total == done:
            self.note(f"{name}: {counted(total, 'unit')}{skipped}; nothing to do")
            yield lambda: None
            return
        if sys.stderr.isatty():
            with self._bar(name, total, done) as advance:
                yield advance
        else:
            yield self._lines(name, total, done, started)
        seconds = time.monotonic() - started
        self.note(f"{name}: {counted(total, 'unit')}{skipped}; {seconds:.1f} s")

    @contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, completed=done)
            yield lambda: bar.advance(task)

    def _lines(self, name: str, total: int, done: int, started: float) -> Callable[[], None]:
        state = {"done": done, "said": started}

        def advance() -> None:
            state["done"] += 1
            now = time.monotonic()
            if now - state["said"] >= _SECONDS_BETWEEN_LINES:
                state["said"] = now
                units = f"{state['done']:,.0f} of {counted(total, 'unit')}"
                self.note(f"{name}: {units}, {now - started:.0f} s")

        return advance
