"""Servants: the two sides of an expendable process, the parent's and its own.

The parent sends a pickled call, waits for the answer or for the end, and keeps the last words. The
process runs one call after the other, each with a bound on memory, and ends with its parent.
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pipeline.answers import AnswerError, plain_error, read_answer, write_answer

_CALLS_PER_PROCESS = 256
_GROWTH_BYTES = 512 << 20  # of resident memory between calls; then the process is replaced
_MAX_WAIT_SECONDS = 3600.0  # in one system call, which takes no more than a month
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies


def limit_memory(extra_bytes: int) -> None:
    """Lets this process map `extra_bytes` more than it has; beyond, MemoryError or a crash."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _memory(0) + extra_bytes
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


DeathKind = Literal["crashed", "out_of_memory", "timeout", "killed"]


class Ended(Exception):
    """The process is no more, or is to be killed."""

    def __init__(self, kind: DeathKind, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind: DeathKind = kind
        self.detail = detail


class Servant:
    """The parent's side of one process."""

    def __init__(self, memory_bytes: int, preload: Sequence[str]) -> None:
        self.parent = os.getpid()
        arguments = (str(memory_bytes), str(self.parent), *preload)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.servant", *arguments],
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
            raise Ended("crashed", str(error)) from None
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
                raise Ended("timeout", f"ran longer than {self._seconds:g} s")
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

    def _ended(self) -> Ended:
        """How the process ended, which closed its pipes."""
        try:
            code = self._process.wait(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Ended("timeout", f"ran longer than {self._seconds:g} s")
        poll = select.poll()
        poll.register(self._says, select.POLLIN)
        while poll.poll(0) and self._hear():
            continue
        if code == -signal.SIGKILL:
            return Ended("killed", "killed from outside, or by the kernel for want of memory")
        return Ended("crashed", _last_words(code, self._words))


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
