"""Isolation: what may crash, hang or eat memory runs alone, in a process that is ours to lose.

alone = Expendable(memory_bytes=1 << 30)
answer = alone.call(partial(decode, "film.mp4"), seconds=60)      # its value, or a Death

The process serves one call after the other, each with a bound on memory and time, and is replaced
when it dies, after some calls, or when it has grown. It ends with its parent. Its end is evidence:
a signal or an exit code of its own is the work's fault, while SIGKILL came from outside (a person,
a machine that is taken away, the kernel out of memory) and says nothing about the work.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from pipeline.answers import AnswerError, plain_error, read_answer, write_answer

Value = TypeVar("Value")

_TRIES_WHEN_KILLED = 5  # a process that is killed from outside so often is not a coincidence
_CALLS_PER_PROCESS = 256
_GROWTH_BYTES = 512 << 20  # of resident memory between calls; then the process is replaced
_MAX_WAIT_SECONDS = 3600.0  # in one system call, which takes no more than a month
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies


DeathKind = Literal["crashed", "out_of_memory", "timeout", "killed"]


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
        self._process: _Servant | None = None

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

    def close(self) -> None:
        if self._process is not None and self._process.parent == os.getpid():
            self._process.end()
        self._process = None

    def _call_once(self, call: bytes, seconds: float) -> Any | Death:
        if self._process is not None and self._process.parent != os.getpid():
            self._process = None  # that of the process that we were forked from
        if self._process is None:
            self._process = _Servant(self._memory_bytes, self._preload)
        try:
            succeeded, value, is_worn = self._process.ask(call, seconds)
        except _Ended as end:
            self.close()
            return end.death
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


def limit_memory(extra_bytes: int) -> None:
    """Lets this process map `extra_bytes` more than it has; beyond, MemoryError or a crash."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _memory(0) + extra_bytes
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


class _Ended(Exception):
    def __init__(self, death: Death) -> None:
        super().__init__(death)
        self.death = death


class _Servant:
    """The parent's side of one process."""

    def __init__(self, memory_bytes: int, preload: Sequence[str]) -> None:
        self.parent = os.getpid()
        arguments = (str(memory_bytes), str(self.parent), *preload)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.isolation", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
            },
        )
        self._num_calls = 0
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._pipes = [pipe for pipe in pipes if pipe is not None]
        self._calls, self._answers, self._says = (pipe.fileno() for pipe in self._pipes)
        for file in (self._calls, self._answers, self._says):
            os.set_blocking(file, False)
        self._words = b""
        self._speaks = True

    def ask(self, call: bytes, seconds: float) -> tuple[bool, Any, bool]:
        """(whether it succeeded, value or error, whether the process has worked enough)."""
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._send(struct.pack("<Q", len(call)) + call)
        try:
            outcome, growth = read_answer(self._receive)
            succeeded, value = _checked(outcome)
        except AnswerError as error:
            raise _Ended(Death("crashed", str(error))) from None
        self._num_calls += 1
        is_worn = self._num_calls >= _CALLS_PER_PROCESS or growth > _GROWTH_BYTES
        return succeeded, value, is_worn

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            pipe.close()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(writing=True)
            try:
                view = view[os.write(self._calls, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def _receive(self, size: int) -> bytearray:
        """Exactly so many bytes of the answer."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            self._wait(writing=False)
            try:
                count = os.readv(self._answers, [view])
            except BlockingIOError:
                continue
            if not count:
                raise self._ended()
            view = view[count:]
        return data

    def _wait(self, *, writing: bool) -> None:
        """Until the pipe is ready; takes in what the process says meanwhile."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise _Ended(Death("timeout", f"ran longer than {self._seconds:g} s"))
            poll = select.poll()
            if self._speaks:
                poll.register(self._says, select.POLLIN)
            if writing:
                poll.register(self._calls, select.POLLOUT)
            else:
                poll.register(self._answers, select.POLLIN)
            ready = {file for file, _ in poll.poll(1000 * min(left, _MAX_WAIT_SECONDS))}
            if self._says in ready:
                self._speaks = self._hear()
            if ready - {self._says}:
                return

    def _hear(self) -> bool:
        """Keeps the end of what the process has said; False when it says no more."""
        try:
            heard = os.read(self._says, 1 << 16)
        except BlockingIOError:
            return True
        self._words = (self._words + heard)[-4096:]
        return bool(heard)

    def _ended(self) -> _Ended:
        """How the process ended, which closed its pipes."""
        try:
            code = self._process.wait(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return _Ended(Death("timeout", f"ran longer than {self._seconds:g} s"))
        while select.select([self._says], [], [], 0)[0] and self._hear():
            continue
        if code == -signal.SIGKILL:
            return _Ended(
                Death("killed", "killed from outside, or by the kernel for want of memory")
            )
        return _Ended(Death("crashed", _last_words(code, self._words)))


def _checked(outcome: Any) -> tuple[bool, Any]:
    """(True, value) or (False, error); AnswerError for anything else."""
    match outcome:
        case (True, value):
            return True, value
        case (False, Exception() as error):
            return False, error
    raise AnswerError("an answer is of another form")


def _last_words(code: int, words: bytes) -> str:
    end = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    said = words.decode(errors="replace").strip().splitlines()[-1:]
    return ": ".join([end, *(line[:200] for line in said)])


def _memory(column: int) -> int:
    """Bytes that this process has mapped (0), or has in memory (1)."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


def _serve(memory_bytes: int, parent: int, preload: Sequence[str]) -> None:
    """The process's side: calls come on stdin, answers go out on stdout; prints go to stderr."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask to follow it
        os._exit(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    calls = sys.stdin.buffer
    for name in preload:
        with suppress(ImportError, OSError, RuntimeError):  # who needs it says so
            importlib.import_module(name)
    first_resident = 0
    while header := calls.read(8):
        call = pickle.loads(calls.read(*struct.unpack("<Q", header)))
        first_resident = first_resident or _memory(1)
        limit_memory(memory_bytes)
        outcome: tuple[bool, Any]
        try:
            outcome = (True, call())
        except Exception as error:
            outcome = (False, plain_error(error))
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
        write_answer(answers, outcome, _memory(1) - first_resident)
        del outcome, call


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
