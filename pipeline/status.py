"""Status: how far a build is, seen from another shell.

    tessera status runs/data

The driver writes `_status.json` every two seconds: the phase, its units, who works on which, clips
per second, the encoder's busy share. It is about a run, not about the dataset: nothing reads it but
people, and a build that is killed leaves its last word there.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.attempts import Attempts
from pipeline.commit import COMMITS, Store
from pipeline.shards.format import SUCCESS_FILE, canonical_json
from tokenizer.settings import UserError

STATUS_FILE = "_status.json"
SECONDS_BETWEEN = 2.0
SILENT_AFTER = 30.0  # seconds without a word: the build is dead or cut off
PHASES_WITH_UNITS = ("annotate", "caption", "tokenize")


@dataclass
class Status:
    """What is known of the phase that runs."""

    phase: str
    num_units: int
    num_done: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started_at: float = field(default_factory=time.time)
    updated_at: float = 0.0
    done_before: int = 0
    num_returned: int = 0
    clips: int = 0
    encode_seconds: float = 0.0
    encode_spans: dict[str, list[float]] = field(default_factory=dict)
    leased: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(self.updated_at - self.started_at, 1e-9)

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds

    @property
    def encoder_busy(self) -> float | None:
        """Share of the time between each encoder's first and last batch that it was encoding."""
        span = sum(last - first for first, last in self.encode_spans.values())
        return self.encode_seconds / span if span > 0 else None

    @property
    def seconds_left(self) -> float | None:
        done = self.num_done - self.done_before
        return (self.num_units - self.num_done) * self.seconds / done if done else None


class Watch:
    """What an executor tells of its units; `done` reads what the commit says of the run."""

    def __init__(self, status: Status, store: Store) -> None:
        self.status = status
        self.advance: Callable[[], None] = lambda: None
        self._store = store
        self._lock = threading.Lock()

    def leased(self, unit: str) -> None:
        with self._lock:
            self.status.leased[unit] = round(time.time(), 3)

    def returned(self, unit: str) -> None:
        """A worker died over the unit, or could not reach a file of it."""
        with self._lock:
            self.status.leased.pop(unit, None)
            self.status.num_returned += 1

    def done(self, unit: str) -> None:
        record = self._store.read(unit)
        run = record["run"]
        with self._lock:
            status = self.status
            status.leased.pop(unit, None)
            status.num_done += 1
            status.clips += record["result"].get("n_in", 0)
            if run.get("encode_span"):
                first, last = run["encode_span"]
                span = status.encode_spans.setdefault(str(run.get("encoder_pid")), [first, last])
                span[:] = [min(span[0], first), max(span[1], last)]
                status.encode_seconds += run["encode_seconds"]
        self.advance()

    def write(self) -> None:
        with self._lock:
            self.status.updated_at = round(time.time(), 3)
            record = canonical_json(asdict(self.status))
        self._store.storage.put(STATUS_FILE, record)


@contextmanager
def watched(store: Store, phase: str, num_units: int, num_done: int) -> Iterator[Watch]:
    """A watch whose status is written now, every two seconds, and at the end."""
    status = Status(phase, num_units, num_done, done_before=num_done)
    watch = Watch(status, store)
    over = threading.Event()

    def write_on() -> None:
        while not over.wait(SECONDS_BETWEEN):
            watch.write()

    watch.write()
    writer = threading.Thread(target=write_on, daemon=True)
    writer.start()
    try:
        yield watch
    finally:
        over.set()
        writer.join()
        watch.write()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `tessera status` shows."""

    root: str
    state: str
    """`running`, `silent` (no word for 30 s), `stopped` or `finished`."""
    committed: dict[str, int]
    """Units committed so far, by phase."""
    attempts: dict[str, int]
    """Units that were begun and not ended, with how often."""
    status: Status | None

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.status is not None:
            for name in ("clips_per_second", "encoder_busy", "seconds_left"):
                values["status"][name] = getattr(self.status, name)
        return values


def look(root: str, now: float | None = None) -> Report:
    """The state of a build; UserError when there is none."""
    store = Store(root)
    now = time.time() if now is None else now
    committed = _by_phase(store.storage.names(COMMITS))
    try:
        values = json.loads(store.storage.read(STATUS_FILE))
        status = Status(**values)
    except FileNotFoundError:
        status = None
    except (ValueError, TypeError) as error:
        raise UserError(f"{root}/{STATUS_FILE}: of another version ({error})") from None
    if status is None and not committed:
        raise UserError(f"{root}: no build here; start one with `tessera build CONFIG`")
    if store.storage.size(SUCCESS_FILE) is not None:
        state = "finished"
    elif status is None or status.num_done >= status.num_units:
        state = "stopped"
    else:
        state = "running" if now - status.updated_at < SILENT_AFTER else "silent"
    attempts = Attempts(store).begun()
    return Report(root=root, state=state, committed=committed, attempts=attempts, status=status)


def _by_phase(names: Iterable[str]) -> dict[str, int]:
    counts = dict.fromkeys(PHASES_WITH_UNITS, 0)
    for name in names:
        phase = name.partition("-")[0]
        if phase in counts:
            counts[phase] += 1
    return {phase: count for phase, count in counts.items() if count}
