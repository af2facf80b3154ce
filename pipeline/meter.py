"""The meter: CPU seconds of this process and of all that it started, Ray's processes included."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


class Meter:
    """CPU seconds of this process and of everything below it, step by step.

    Ray's processes are not waited for by their parents, so what the kernel adds up for us misses
    them: a thread looks at all descendants every second and keeps what each had used when it was
    last seen (Linux; elsewhere only what was waited for counts).
    """

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._before = 0.0
        self._seen: dict[tuple[int, int], float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def lap(self, name: str) -> None:
        total = self.total()
        self.steps[name] = round(total - self._before, 1)
        self._before = total

    def total(self) -> float:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        own, waited_for = (usage.ru_utime + usage.ru_stime for usage in usages)
        self._look()
        return own + max(waited_for, sum(self._seen.values()))

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(1.0)

    def _look(self) -> None:
        processes = _processes()
        children: dict[int, list[int]] = {}
        for pid, (parent, _, _) in processes.items():
            children.setdefault(parent, []).append(pid)
        below = list(children.get(os.getpid(), ()))
        for pid in below:
            below += children.get(pid, ())
            _, started, seconds = processes[pid]
            self._seen[pid, started] = seconds


def _processes() -> dict[int, tuple[int, int, float]]:
    """(parent, start time, CPU seconds) of every process, from /proc; empty where there is none."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / ticks
            found[int(path.parent.name)] = (int(fields[1]), int(fields[19]), seconds)
    return found


def adopt_orphans() -> None:
    """Makes this process the parent of orphans below it, so that Ray's workers are counted."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
