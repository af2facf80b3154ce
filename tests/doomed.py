"""What runs alone and may die of it; imported by its process, so it loads nothing of a test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
