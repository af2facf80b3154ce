"""What runs alone and may die of it; imported by its process, so it loads nothing of a test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.answers import write_answer

_KEPT: list[np.ndarray] = []


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)


def refuse() -> None:
    raise ValueError("no such thing")


def die_at_first(log: Path, times: int) -> str:
    with open(log, "a") as file:
        file.write("x")
    if len(log.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def say_and_return() -> int:
    print("frames: 7")
    os.write(1, b"libav: frames: 7\n")
    return 7


def mark_and_wait(path: str) -> None:
    Path(path + "~").write_text(str(os.getpid()))
    os.rename(path + "~", path)
    time.sleep(60)


def keep(size_bytes: int) -> int:
    _KEPT.append(np.ones(size_bytes, np.uint8))
    return os.getpid()


def two_layouts() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(12).reshape(3, 4).T, np.empty((0, 3))


def answer_with_a_function() -> Callable[[int], None]:
    return die_by


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never",)


def answer_that_runs_a_command() -> Command:
    return Command()


class Pointers:
    def __reduce__(self) -> Any:
        return np.ndarray, ((1,), np.dtype("O"), b"A" * 8)


def answer_with_pointers() -> Pointers:
    return Pointers()


def numbers() -> tuple[Any, ...]:
    return np.float32(0.5), np.array(3), np.arange(6, dtype=">u2")[::2], np.zeros((2, 0), bool)


def answer_out_of_form(form: str) -> None:
    """Says what no call of ours says, as a process that was taken over can."""
    outcome = {"three": (True, 1, 2), "no error": (False, 1)}[form]
    with os.fdopen(os.dup(answers_file()), "wb") as file:
        write_answer(file, outcome, 0)
    time.sleep(60)


def answers_file() -> int:
    """The number of the pipe that the answers go to."""
    names = {int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2}
    (answers,) = (n for n in names if os.path.exists(f"/proc/self/fd/{n}") and is_pipe(n))
    return answers


def is_pipe(number: int) -> bool:
    return os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
