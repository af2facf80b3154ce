"""Status: a running build is seen from another shell, and a dead one is told from it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.attempts import Attempts
from pipeline.cli import main
from pipeline.commit import Store
from pipeline.status import SILENT_AFTER, look, watched
from tokenizer.settings import UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "data")
    store.prepare()
    return store


def commit(store: Store, unit: str, clips: int, span: tuple[float, float]) -> None:
    run = {"encode_span": list(span), "encode_seconds": 1.0, "encoder_pid": 7}
    store.commit(unit, {"n_in": clips}, run)


def test_a_running_build_shows_its_units_rates_and_time_left(store: Store) -> None:
    with watched(store, "tokenize", 10, 4) as watch:
        for number in range(2):
            watch.leased(f"tokenize-{number}")
            commit(store, f"tokenize-{number}", 30, (100.0 + 2 * number, 101.0 + 2 * number))
            watch.done(f"tokenize-{number}")
        watch.leased("tokenize-2")
        watch.leased("tokenize-3")
        watch.returned("tokenize-3")
        watch.status.started_at = time.time() - 20
        watch.write()
        report = look(store.root)
    assert report.state == "running"
    assert report.committed == {"tokenize": 2}
    status = report.status
    assert status is not None
    assert (status.num_done, status.num_units, list(status.leased)) == (6, 10, ["tokenize-2"])
    assert status.num_returned == 1
    assert status.clips_per_second == pytest.approx(3.0, rel=0.05)
    assert status.encoder_busy == pytest.approx(2.0 / 3.0)
    assert status.seconds_left == pytest.approx(40.0, rel=0.05)


def test_a_build_that_says_nothing_any_more_is_silent(store: Store) -> None:
    with watched(store, "annotate", 10, 0):
        pass
    Attempts(store).begin("annotate-1")
    later = time.time() + SILENT_AFTER + 5
    report = look(store.root, later)
    assert report.state == "silent"
    assert report.attempts == {"annotate-1": 1}


def test_a_finished_build_is_finished(store: Store) -> None:
    with watched(store, "tokenize", 1, 1):
        pass
    assert look(store.root).state == "stopped"
    store.storage.put("_SUCCESS", b"{}")
    assert look(store.root).state == "finished"


def test_the_command_speaks_to_people_and_to_programs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched(store, "tokenize", 3, 0) as watch:
        commit(store, "tokenize-0", 30, (100.0, 101.0))
        watch.done("tokenize-0")
        watch.write()
        assert main(["status", store.root]) == 0
        assert main(["status", store.root, "--json"]) == 0
    shown, _, record = capsys.readouterr().out.partition("{")
    assert "running; units committed: tokenize 1" in shown
    assert "tokenize: 1 of 3 units, 0 leased" in shown
    assert "encoders busy 100%" in shown
    assert json.loads("{" + record)["status"]["encoder_busy"] == 1.0


def test_a_folder_without_a_build_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no build here; start one"):
        look(str(tmp_path))
