"""A run's folder has one owner at a time: two that write into it would lose each other's work.

The owner holds a lock of the system on `RUN/owner`, which ends with its process however that ends;
the file itself stays and says who it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from tokenizer.settings import UserError

FILE = "owner"
PATIENCE = 5.0
"""Seconds to wait for an owner that was killed, and is being cleared away."""
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Owner:
    """`take` makes this process a folder's owner, until the `with` block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """UserError when another process is the owner. Some file systems have no locks: nothing
        is asked there. What is owned already stays so."""
        if self._file is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = open(self._folder / FILE, "a+", encoding="utf-8")  # noqa: SIM115
        deadline = time.monotonic() + PATIENCE
        while not _is_locked(file):
            if time.monotonic() > deadline:
                file.seek(0)
                who = file.read(200).strip() or "another process"
                file.close()
                raise UserError(
                    f"{self._folder}: {who} trains here; wait for its end, or give another folder"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True
