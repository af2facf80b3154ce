"""Work that runs alone: its value comes back, its end is named, and a kill from outside is none."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.isolation import Death, run_alone, time_limit
from tests.doomed import die_at_first, die_by, refuse, say_and_return

MEMORY = 256 << 20


def alone(function: Callable[..., Any], *args: Any, seconds: float = 60) -> Any:
    return run_alone(pickle.dumps(partial(function, *args)), MEMORY, seconds)


def test_values_and_errors_come_back_and_prints_do_not_disturb() -> None:
    assert np.array_equal(alone(np.arange, 5), np.arange(5))
    assert alone(say_and_return) == 7
    with pytest.raises(ValueError, match="no such thing"):
        alone(refuse)


def test_an_end_is_named_with_what_was_seen_of_it() -> None:
    assert alone(die_by, signal.SIGSEGV) == Death("crashed", "signal 11 (SIGSEGV)")
    assert alone(sys.exit, 3).kind == "crashed"
    assert alone(os._exit, 0).kind == "crashed"
    assert alone(np.ones, 1 << 28) == Death("out_of_memory", "wanted more than 256 MiB")
    assert alone(time.sleep, 60, seconds=2) == Death("timeout", "ran longer than 2 s")


def test_a_kill_from_outside_is_no_evidence_until_it_repeats(tmp_path: Path) -> None:
    assert alone(die_at_first, tmp_path / "log", 4) == "done"
    assert alone(die_by, signal.SIGKILL).kind == "killed"


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import pickle, os, sys; from functools import partial\n"
        "from pipeline.isolation import run_alone; from tests.doomed import mark_and_wait\n"
        "run_alone(pickle.dumps(partial(mark_and_wait, sys.argv[1])), 1 << 30, 60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pid")])
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
        assert parent.poll() is None
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_time_limit_kills_its_own_process_even_in_a_call_that_never_returns() -> None:
    program = (
        "import time; from pipeline.isolation import time_limit\n"
        "with time_limit(30): pass\n"
        "with time_limit(0.2): time.sleep(60)"
    )
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], check=False).returncode
    assert ended == -signal.SIGALRM
    assert time.monotonic() - started < 30


def test_a_time_limit_that_is_kept_leaves_nothing_behind() -> None:
    with time_limit(5):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
