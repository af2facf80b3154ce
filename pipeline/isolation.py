"""Isolation: what may crash, hang or eat memory runs alone, in a process that is ours to lose.

alone = Expendable(memory_bytes=1 << 30)
answer = alone.call(partial(decode, "film.mp4"), seconds=60)      # its value, or a Death

The process serves one call after the other, each with a bound on memory and time, and is replaced
when it dies, after some calls, or when it has grown. It ends with its parent. Its end is evidence:
a signal or an exit code of its own is the work's fault, while SIGKILL came from outside (a person,
a machine that is taken away, the kernel out of memory) and says nothing about the work.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from pipeline.servant import DeathKind, Ended, Servant

Value = TypeVar("Value")

_TRIES_WHEN_KILLED = 7  # a process that is killed from outside so often is not a coincidence


@dataclass(frozen=True)
class Death:
    """Why work that ran alone has no result, and what was seen of its end."""

    kind: DeathKind
    detail: str


class Expendable:
    """A process that runs calls one at a time; the next one starts when it is needed.

    `memory_bytes` is what a call may map beyond what the process has when it begins; `preload` are
    modules that take memory of their own and are there before.
    """

    def __init__(self, memory_bytes: int, preload: Sequence[str] = ()) -> None:
        self._memory_bytes = memory_bytes
        self._preload = preload
        self._process: Servant | None = None

    def __enter__(self) -> Expendable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, function: Callable[[], Value], *, seconds: float) -> Value | Death:
        """What the function returns. What it raises is raised here, but for MemoryError: a Death.

        After `seconds` the process is killed.
        """
        return self.call_pickled(pickle.dumps(function, protocol=5), seconds=seconds)

    def call_pickled(self, call: bytes, *, seconds: float) -> Any | Death:
        """The same for a function that something else than plain pickle has made bytes of."""
        for _ in range(_TRIES_WHEN_KILLED):
            outcome = self._call_once(call, seconds)
            if not isinstance(outcome, Death) or outcome.kind != "killed":
                break
        return outcome

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None and self._process.parent == os.getpid():
            self._process.end()
        self._process = None

    def _call_once(self, call: bytes, seconds: float) -> Any | Death:
        if self._process is not None and self._process.parent != os.getpid():
            self._process = None  # that of the process that we were forked from
        if self._process is None:
            self._process = Servant(self._memory_bytes, self._preload)
        try:
            succeeded, value, is_worn = self._process.ask(call, seconds)
        except Ended as end:
            self.close()
            return Death(end.kind, end.detail)
        except BaseException:
            self.close()
            raise
        if is_worn:
            self.close()
        if succeeded:
            return value
        if isinstance(value, MemoryError):
            return Death("out_of_memory", f"wanted more than {self._memory_bytes >> 20} MiB")
        raise value
