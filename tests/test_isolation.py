"""Work that runs alone: its value comes back, its end is named, and a kill from outside is none."""

from __future__ import annotations

import os
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

from pipeline.isolation import Death, Expendable
from tests.doomed import (
    answer_out_of_form,
    answer_that_runs_a_command,
    answer_with_a_function,
    answer_with_pointers,
    die_at_first,
    die_by,
    keep,
    numbers,
    refuse,
    say_and_return,
    two_layouts,
)

MEMORY = 256 << 20


def alone(function: Callable[..., Any], *args: Any, seconds: float = 60) -> Any:
    with Expendable(MEMORY) as process:
        return process.call(partial(function, *args), seconds=seconds)


def test_values_and_errors_come_back_and_prints_do_not_disturb() -> None:
    assert np.array_equal(alone(np.arange, 5), np.arange(5))
    assert alone(say_and_return) == 7
    with pytest.raises(ValueError, match="no such thing"):
        alone(refuse)


@pytest.mark.slow
def test_an_end_is_named_with_what_was_seen_of_it() -> None:
    assert alone(die_by, signal.SIGSEGV) == Death("crashed", "signal 11 (SIGSEGV)")
    assert alone(sys.exit, 3).kind == "crashed"
    assert alone(os._exit, 0).kind == "crashed"
    assert alone(np.ones, 1 << 28) == Death("out_of_memory", "wanted more than 256 MiB")
    assert alone(time.sleep, 60, seconds=2) == Death("timeout", "ran longer than 2 s")


@pytest.mark.slow
def test_a_kill_from_outside_is_no_evidence_until_it_repeats(tmp_path: Path) -> None:
    assert alone(die_at_first, tmp_path / "log", 4) == "done"
    assert alone(die_by, signal.SIGKILL).kind == "killed"


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from functools import partial\n"
        "from pipeline.isolation import Expendable; from tests.doomed import mark_and_wait\n"
        "Expendable(1 << 30).call(partial(mark_and_wait, sys.argv[1]), seconds=60)"
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


def test_a_fork_of_the_parent_has_a_process_of_its_own_and_leaves_the_other_alone() -> None:
    with Expendable(MEMORY) as process:
        first = process.call(os.getpid, seconds=60)
        read, write = os.pipe()
        if not (fork := os.fork()):
            try:
                os.write(write, str(process.call(os.getpid, seconds=60)).encode())
                process.close()
            finally:
                os._exit(0)
        os.waitpid(fork, 0)
        assert int(os.read(read, 99)) != first
        assert process.call(os.getpid, seconds=60) == first
    os.close(read)
    os.close(write)


def test_one_process_serves_many_calls_until_it_is_worn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.servant._CALLS_PER_PROCESS", 3)
    with Expendable(MEMORY) as process:
        pids = [process.call(os.getpid, seconds=60) for _ in range(7)]
        assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]
        assert process.call(partial(die_by, signal.SIGSEGV), seconds=60) == Death(
            "crashed", "signal 11 (SIGSEGV)"
        )
        after = process.call(os.getpid, seconds=60)
        assert after not in pids
        assert os.getpid() not in pids
    assert not is_running(after)


def test_a_process_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.servant._GROWTH_BYTES", 100 << 20)
    with Expendable(1 << 30) as process:
        first = process.call(os.getpid, seconds=60)
        assert process.call(partial(keep, 10 << 20), seconds=60) == first
        assert process.call(partial(keep, 150 << 20), seconds=60) == first
        assert process.call(os.getpid, seconds=60) != first


def test_memory_is_bounded_call_by_call_however_much_was_kept_before() -> None:
    with Expendable(MEMORY) as process:
        first = process.call(partial(keep, 150 << 20), seconds=60)
        assert process.call(partial(keep, 150 << 20), seconds=60) == first
        assert process.call(partial(keep, 300 << 20), seconds=60).kind == "out_of_memory"


def test_large_arrays_come_back_whole_and_of_any_layout() -> None:
    answer = alone(np.arange, 30_000_000, None, 1, np.uint8)
    assert np.array_equal(answer, np.arange(30_000_000).astype(np.uint8))
    turned, empty = alone(two_layouts)
    assert np.array_equal(turned, np.arange(12).reshape(3, 4).T)
    assert empty.shape == (0, 3)


def test_numbers_come_back_as_what_they_were() -> None:
    half, three, even, none = alone(numbers)
    assert (type(half), half) == (np.float32, 0.5)
    assert isinstance(three, np.ndarray)
    assert three.shape == ()
    assert three == 3
    assert even.dtype == np.dtype(">u2")
    assert even.tolist() == [0, 2, 4]
    assert none.dtype == bool
    assert none.shape == (2, 0)


@pytest.mark.parametrize(
    "call", [answer_with_a_function, answer_that_runs_a_command, answer_with_pointers]
)
def test_an_answer_cannot_make_the_parent_run_anything(call: Callable[..., Any]) -> None:
    death = alone(call)
    assert death.kind == "crashed"
    assert "is not what answers are made of" in death.detail


@pytest.mark.parametrize("form", ["three", "no error"])
def test_an_answer_of_another_form_is_a_crash(form: str) -> None:
    assert alone(answer_out_of_form, form) == Death("crashed", "an answer is of another form")


def test_a_call_may_have_all_the_time_there_is() -> None:
    assert alone(say_and_return, seconds=1e12) == 7


def test_errors_of_libraries_come_back_as_words() -> None:
    with pytest.raises(RuntimeError, match="LinAlgError: Singular matrix"):
        alone(np.linalg.inv, np.zeros((2, 2)))


def test_one_that_is_forgotten_takes_its_process_along() -> None:
    process = Expendable(MEMORY)
    pid = process.call(os.getpid, seconds=60)
    assert is_running(pid)
    del process
    assert not is_running(pid)
