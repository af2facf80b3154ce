"""Functions run on several ranks at once, in processes that stay: torch is loaded once.

    with Ranks(2) as ranks:
        first, second = ranks.run(function, argument)       # what it returns on each rank

A function is called as function(*arguments) on every rank of a gloo group, is of a module that can
be imported, and must answer in time: else all processes are killed and the test fails.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Ranks:
    """Processes of one group; those of a call that failed are replaced."""

    def __init__(self, size: int, seconds: float = 120) -> None:
        self.size = size
        self._seconds = seconds
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 0) -> list[Any]:
        """What the function returns on each rank; its error, if one of them has one."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        deadline = time.monotonic() + (seconds or self._seconds)
        answers: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(deadline - time.monotonic(), 0)):
                self.close()
                raise AssertionError(f"rank {rank} gave no answer in time; before it: {answers}")
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append((False, "the process is gone"))
        failed = [f"rank {rank}: {each[1]}" for rank, each in enumerate(answers) if not each[0]]
        if failed:
            self.close()
            raise AssertionError("\n".join(failed))
        return [each[1] for each in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = tempfile.mktemp(prefix="tessera-ranks-")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.size, store), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(pipe: Connection, rank: int, size: int, store: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        torch.set_flush_denormal(False)
