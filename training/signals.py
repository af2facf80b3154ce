"""A polite end: SIGTERM or the first SIGINT lets the step finish and the run be saved.

with Stopping() as stopping:
    while not stopping.is_asked: ...
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Whether this process was asked to end. A second SIGINT ends it at once.

    Signals reach the main thread only; elsewhere (a worker of Ray) nothing is listened to.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for each in _SIGNALS:
                self._before[each] = signal.signal(each, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_asked = True
        name = signal.Signals(number).name
        # Not by `print`, which must not be entered twice.
        os.write(2, f"{name}: finishing this step, then saving\n".encode())
