"""Storage: what appears is whole and is created once, on a disk and in an object store."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.commit import Store
from pipeline.storage import LocalStorage, Storage, check, local_file, open_storage, sha256_of
from tokenizer.settings import UserError

RACER = """
import random, sys, time
from dataclasses import asdict
from pipeline.commit import Store
store, number = Store(sys.argv[1]), sys.argv[2]
for unit in range(200):
    sys.stdin.readline()
    time.sleep(random.Random(f"{number} {unit}").random() * 0.01)
    data = f"{number} {unit}".encode()
    part = store.write_part(f"u{unit}", ".tar", lambda file: file.write(data))
    won = store.commit(f"u{unit}", {"parts": [asdict(part)]}, {"by": number})
    print(int(won), flush=True)
"""


@pytest.fixture(params=["disk", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    roots = {"disk": str(tmp_path / "data"), "memory": f"memory://{tmp_path.name}/data"}
    if request.param == "s3":
        roots["s3"] = f"{request.getfixturevalue('s3')}/{tmp_path.name}/data"
    storage = open_storage(roots[request.param])
    storage.prepare()
    return storage


def test_a_name_is_created_once_and_whole(storage: Storage) -> None:
    check(storage)
    assert storage.create("_commits/u.json", b"first")
    assert not storage.create("_commits/u.json", b"second")
    assert storage.read("_commits/u.json") == b"first"
    assert storage.size("_commits/u.json") == 5
    assert storage.names("_commits") == ["u.json"]
    assert -5 < storage.age_seconds("_commits/u.json", time.time()) < 60


def test_files_that_are_larger_than_a_piece_are_created_once(storage: Storage) -> None:
    for fill, wins in ((b"a", True), (b"b", False)):
        path = storage.scratch() / "large"
        path.write_bytes(fill * (11 << 20))
        assert storage.create("parts/large.tar", path) is wins
        assert not path.exists()
    with storage.open("parts/large.tar") as stream:
        stream.seek(10 << 20)
        assert stream.read(3) == b"aaa"


def test_put_replaces_and_delete_forgets(storage: Storage) -> None:
    storage.put("shards.json", b"old")
    storage.put("shards.json", b"new")
    assert storage.read("shards.json") == b"new"
    storage.delete("shards.json")
    storage.delete("shards.json")
    assert storage.size("shards.json") is None
    with pytest.raises(FileNotFoundError):
        storage.read("shards.json")
    with pytest.raises(FileNotFoundError), storage.open("shards.json") as stream:
        stream.read(1)
    assert storage.names("nowhere") == []


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    storage.put("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


class OverwritingStorage(LocalStorage):
    """What clients without conditional writes do."""

    def create(self, name: str, content: bytes | Path) -> bool:
        self.put(name, content)
        return True


def test_a_store_that_overwrites_silently_is_refused(tmp_path: Path) -> None:
    storage = OverwritingStorage(tmp_path / "data")
    storage.prepare()
    with pytest.raises(UserError, match="overwrites a file that it was told to create only"):
        check(storage)
    assert not list((tmp_path / "data" / "tmp").iterdir())


def test_a_protocol_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match="install fsspec's package"):
        Store("nosuch://bucket/data").prepare()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_two_processes_racing_for_200_commits_leave_one_part_each(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Both begin each unit at about the same moment, so that either may win it."""
    root = str(tmp_path / "data")
    if where == "s3":
        root = f"{request.getfixturevalue('s3')}/{tmp_path.name}/race"
    store = Store(root)
    store.prepare()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, root, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for number in range(2)
    ]
    wins = [0, 0]
    for _ in range(200):
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [int(racer.stdout.readline()) for racer in racers if racer.stdout]
        assert sum(won) == 1
        wins = [total + each for total, each in zip(wins, won)]
    assert [racer.wait(timeout=10) for racer in racers] == [0, 0]
    assert min(wins) > 10, wins
    records = [json.loads(store.storage.read(f"_commits/u{unit}.json")) for unit in range(200)]
    named = {record["result"]["parts"][0]["path"].removeprefix("parts/") for record in records}
    assert set(store.storage.names("parts")) == named
    for record in records:
        (part,) = record["result"]["parts"]
        assert store.storage.size(part["path"]) == part["size_bytes"]


def test_everything_is_listed_with_its_size(storage: Storage) -> None:
    storage.create("parts/a.tar", b"12345")
    storage.put("manifest.parquet", b"123")
    storage.put("tokenizer/tokenizer.json", b"{}")
    assert storage.walk() == {
        "manifest.parquet": 3,
        "parts/a.tar": 5,
        "tokenizer/tokenizer.json": 2,
    }


def test_only_what_is_old_enough_is_deleted(storage: Storage) -> None:
    storage.create("parts/a.tar", b"12345")
    now = time.time()
    assert not storage.delete_older("parts/a.tar", 3600, now)
    assert storage.read("parts/a.tar") == b"12345"
    assert storage.delete_older("parts/a.tar", 3600, now + 7200)
    assert storage.size("parts/a.tar") is None
    assert not storage.delete_older("parts/a.tar", 0, now + 7200)


def test_a_file_is_a_path_wherever_it_lies(storage: Storage) -> None:
    storage.create("parts/a.tar", b"12345")
    with local_file(storage, "parts/a.tar") as path:
        assert path.read_bytes() == b"12345"
    with pytest.raises(FileNotFoundError), local_file(storage, "parts/b.tar") as path:
        path.read_bytes()
    assert sha256_of(storage, "parts/a.tar") == hashlib.sha256(b"12345").hexdigest()


def test_threads_share_one_scratch_folder() -> None:
    storage = open_storage("memory://scratch")
    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(lambda _: storage.scratch(), range(64))}) == 1
