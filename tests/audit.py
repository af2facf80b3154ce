"""An audit hook: what code under test may do with files and the system."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_events: list[str] | None = None
_WATCHED = ("os.", "subprocess.", "pickle.", "exec", "socket.", "shutil.", "ctypes.")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None:
        return
    if event == "open":
        _events.append(f"open {os.fspath(arguments[0])} {arguments[1]}")
    elif event.startswith(_WATCHED) and event not in ("os.listdir", "os.scandir"):
        _events.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def only_reads_in(folder: Path) -> Iterator[None]:
    """Fails when what runs inside does anything but read files of `folder`."""
    global _events
    _events = []
    try:
        yield
    finally:
        seen, _events = _events, None
    allowed = re.compile(rf"open {re.escape(str(folder))}[/\w.-]* rb?")
    assert not [each for each in seen if not allowed.fullmatch(each)]
