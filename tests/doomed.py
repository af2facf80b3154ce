"""What runs alone and may die of it; imported by its process, so it loads nothing of a test."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


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
