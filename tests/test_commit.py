"""The commit protocol: the first wins, losers leave nothing, nothing is half-written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO

import pytest

from pipeline.commit import Store, fingerprint_of, unit_id
from tokenizer.settings import UserError


def write(data: bytes):
    def to(file: IO[bytes]) -> None:
        file.write(data)

    return to


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "data")
    store.prepare()
    return store


def test_a_unit_is_named_by_its_inputs_and_fingerprint() -> None:
    assert unit_id("tokenize", ["a", "b"], "f") == unit_id("tokenize", ["a", "b"], "f")
    names = {unit_id("tokenize", i, f) for i in (["a", "b"], ["b", "a"]) for f in ("f", "g")}
    assert len(names) == 4
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})


def test_the_first_commit_wins_and_the_loser_deletes_its_part(store: Store) -> None:
    first = store.write_part("u", ".tar", write(b"first"))
    second = store.write_part("u", ".tar", write(b"second"))
    assert store.commit("u", {"parts": [asdict(first)]}, {"seconds": 1})
    assert not store.commit("u", {"parts": [asdict(second)]}, {"seconds": 2})
    assert store.read("u")["result"]["parts"] == [asdict(first)]
    assert [path.name for path in (Path(store.root) / "parts").iterdir()] == [Path(first.path).name]


def test_a_loser_with_the_same_bytes_leaves_the_winners_part_alone(store: Store) -> None:
    part = store.write_part("u", ".tar", write(b"same"))
    again = store.write_part("u", ".tar", write(b"same"))
    assert store.commit("u", {"parts": [asdict(part)]}, {})
    assert not store.commit("u", {"parts": [asdict(again)]}, {})
    assert (Path(store.root) / part.path).read_bytes() == b"same"


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write_part("u", ".tar", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write_file("manifest.parquet", fail)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []


RACER = """
import sys
from dataclasses import asdict
from pipeline.commit import Store
root, number = sys.argv[1:]
store = Store(root)
for unit in range(50):
    data = f"{number} {unit}".encode()
    part = store.write_part(f"u{unit}", ".tar", lambda file: file.write(data))
    store.commit(f"u{unit}", {"parts": [asdict(part)]}, {"by": number})
"""


def test_two_processes_that_race_for_units_leave_one_part_each(store: Store) -> None:
    command = [sys.executable, "-c", RACER, str(store.root)]
    racers = [subprocess.Popen([*command, str(number)]) for number in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    parts = {store.read(f"u{unit}")["result"]["parts"][0]["path"] for unit in range(50)}
    assert {f"parts/{path.name}" for path in (Path(store.root) / "parts").iterdir()} == parts
    assert not list((Path(store.root) / "tmp").iterdir())


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "data").prepare()
