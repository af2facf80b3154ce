"""Isolation: what may crash, hang or eat memory runs alone, in a process that is ours to lose.

The process has a bound on its memory and its time, ends with its parent, and its end is evidence: a
signal or an exit code of its own is the work's fault, while SIGKILL came from outside (a person, a
machine that is taken away, the kernel out of memory) and says nothing about the work.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_TRIES_WHEN_KILLED = 5  # a process that is killed from outside so often is not a coincidence
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies


@dataclass(frozen=True)
class Death:
    """Why work that ran alone has no result, and what was seen of its end."""

    kind: Literal["crashed", "out_of_memory", "timeout", "killed"]
    detail: str


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Kills this very process, by SIGALRM, if the body takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory(extra_bytes: int) -> None:
    """Lets this process map `extra_bytes` more than it has; beyond, MemoryError or a crash."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + extra_bytes
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def run_alone(call: bytes, memory_bytes: int, seconds: float) -> Any | Death:
    """The value of a pickled function without arguments, called in a process of its own.

    `memory_bytes` is what it may map beyond what its imports take. What it raises is raised here,
    but for MemoryError, which is a `Death` like the others.
    """
    for _ in range(_TRIES_WHEN_KILLED):
        outcome = _run_once(call, memory_bytes, seconds)
        if not isinstance(outcome, Death) or outcome.kind != "killed":
            break
    return outcome


def _run_once(call: bytes, memory_bytes: int, seconds: float) -> Any | Death:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.isolation", str(memory_bytes), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        answer, words = process.communicate(call, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Death("timeout", f"ran longer than {seconds:g} s")
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0 and answer:
        succeeded, value = pickle.loads(answer)
        if succeeded:
            return value
        if isinstance(value, MemoryError):
            return Death("out_of_memory", f"wanted more than {memory_bytes >> 20} MiB")
        raise value
    if process.returncode == -signal.SIGKILL:
        return Death("killed", "killed from outside, or by the kernel for want of memory")
    return Death("crashed", _last_words(process.returncode, words))


def _last_words(code: int, words: bytes) -> str:
    end = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    said = words.decode(errors="replace").strip().splitlines()[-1:]
    return ": ".join([end, *(line[:200] for line in said)])


def _serve(memory_bytes: int, parent: int) -> None:
    """The process's side: reads the call from stdin, answers on stdout; prints go to stderr."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask to follow it
        os._exit(1)
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    call = pickle.loads(sys.stdin.buffer.read())
    limit_memory(memory_bytes)
    outcome: tuple[bool, Any]
    try:
        outcome = (True, call())
    except Exception as error:
        outcome = (False, error)
    with answer:
        pickle.dump(outcome, answer, protocol=5)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
