"""Stock tars and remote shards: read through the cache, which holds nothing that is not checked."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline.shards import (
    Bucket,
    Loader,
    LoaderConfig,
    ShardError,
    TokenSet,
    open_dataset,
    stock,
)
from pipeline.shards.cache import FileCache, cache_bytes
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import ShardEntry, dump_declaration
from tokenizer.settings import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_stock(
    path: Path, first: int, shapes: list[tuple[int, ...]], json_too: bool = True
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number, shape in enumerate(shapes, first):
            sample = {"__key__": f"s/{number:04d}", "tokens.npy": np.full(shape, number, np.uint16)}
            if json_too:
                sample["json"] = {"number": number}
            writer.write(sample)
    return path


def files_below(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


def test_stock_tars_are_read_like_a_dataset_and_nothing_is_written_beside_them(
    tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "tars"
    shapes: list[tuple[int, ...]] = [(40,), (3, 8)] * 4 + [(40,)] * 3
    tars = [write_stock(folder / f"{n}.tar", 100 * n, shapes) for n in range(3)]
    for location in (folder, str(folder / "*.tar"), tars):
        dataset = open_dataset(location)
        assert set(dataset.buckets) == {"n40", "n3x8"}
        samples = dataset.samples("train", "n40")
        assert len(samples) == 21
        expected = [100 * n + i for n in range(3) for i in (0, 2, 4, 6, 8, 9, 10)]
        found = samples.gather(np.arange(21))
        assert found.shape == (21, 40)
        assert found[:, 0].tolist() == expected
        assert [each["number"] for each in samples.metadata([20, 3])] == [expected[20], expected[3]]
        assert dataset.samples("train", "n3x8").gather([0, 11])[:, 2, 7].tolist() == [1, 207]
    assert files_below(folder) == tars
    assert len(files_below(cache)) == 3


def test_a_stock_tar_is_indexed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    real = stock.index_tar
    monkeypatch.setattr(stock, "index_tar", lambda tar: counted.append(tar) or real(tar))
    tar = write_stock(tmp_path / "a.tar", 0, [(8,)] * 5, json_too=False)
    first = open_dataset(tar)
    assert first.samples().metadata([1]) == [{}]
    assert open_dataset(tar).fingerprint == first.fingerprint
    assert len(counted) == 1
    write_stock(tmp_path / "a.tar", 50, [(8,)] * 6)
    assert len(open_dataset(tar).samples()) == 6
    assert len(counted) == 2
    assert open_dataset(tar).fingerprint != first.fingerprint


def test_a_damaged_index_in_the_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    tar = write_stock(tmp_path / "a.tar", 0, [(8,)] * 5)
    expected = open_dataset(tar).samples().gather([4, 0])
    index = files_below(cache)[0]
    good = index.read_bytes()
    for bad in (b"", good[:-10], good[:200] + b"\xff" + good[201:], b"[3]\n", b"\n"):
        index.write_bytes(bad)
        assert np.array_equal(open_dataset(tar).samples().gather([4, 0]), expected)
        assert index.read_bytes() == good


def test_a_stock_tar_changed_after_it_was_indexed_is_noticed(tmp_path: Path) -> None:
    tar = write_stock(tmp_path / "a.tar", 0, [(8,)] * 5)
    samples = open_dataset(tar).samples()
    data = bytearray(tar.read_bytes())
    offset = int(samples.shards[0].sidecar.places["offset"][0, 0])
    data[offset + 130] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=r"a\.tar: sample s/0000 \(row 0\) at byte \d+ is damaged"):
        samples.gather([0])


def test_a_loader_reads_stock_tars(tmp_path: Path) -> None:
    for number in range(3):
        write_stock(tmp_path / f"tars/{number}.tar", 10 * number, [(8,)] * 10)
    by_bucket = open_dataset(tmp_path / "tars").by_bucket("train")
    loader = Loader(by_bucket, LoaderConfig(global_batch_size=6, order="window", window_shards=2))
    with loader.batches(0, 5) as batches:
        seen = [int(row[0]) for batch in batches for row in batch.arrays]
    assert sorted(seen) == list(range(30))


def test_what_is_no_stock_dataset_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tar matches it"):
        open_dataset(tmp_path / "*.tar")
    with pytest.raises(UserError, match="no such tar"):
        open_dataset([tmp_path / "a.tar"])
    with pytest.raises(UserError, match="not a finished dataset"):
        open_dataset(tmp_path)
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        info = tarfile.TarInfo("a.json")
        payload = json.dumps({}).encode()
        info.size = len(payload)
        tar.addfile(info, io.BytesIO(payload))
    with pytest.raises(UserError, match=r"no \.npy members"):
        open_dataset(tmp_path / "text.tar")
    (tmp_path / "bad.tar").write_bytes(os.urandom(2048))
    with pytest.raises(ShardError, match=r"bad\.tar"):
        open_dataset(tmp_path / "bad.tar")


CODES = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=65536)
CLIP = Bucket(name="t5_h16_w16", num_frames=5, height=16, width=16)
SHARD_BYTES = 20 * 2048 + 1024


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 shards of 20 samples; sample i has the codes [i] * 8."""
    root = tmp_path_factory.mktemp("built") / "data"
    with DatasetWriter(root, [CODES], [CLIP], samples_per_shard=20) as writer:
        for number in range(240):
            codes = np.full(8, number, dtype=np.uint16)
            writer.write(f"clip_{number:04d}", {"codes": codes}, {"number": number})
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    return root


@pytest.fixture(params=["file", "memory", "s3"])
def remote(request: pytest.FixtureRequest, built: Path, tmp_path: Path) -> str:
    """The dataset by URL."""
    import fsspec

    if request.param == "file":
        return f"file://{built}"
    base = request.getfixturevalue("s3") if request.param == "s3" else "memory://"
    url = f"{base}/{tmp_path.name}"
    files, root = fsspec.core.url_to_fs(url)
    for path in files_below(built):
        files.pipe_file(f"{root}/{path.relative_to(built).as_posix()}", path.read_bytes())
    return url


def numbers_of(location: str | Path, order: str = "window", stop: int = 24) -> list[int]:
    config = LoaderConfig(global_batch_size=10, order=order, window_shards=2, threads=1)
    loader = Loader(open_dataset(location).by_bucket("train"), config)
    with loader.batches(0, stop) as batches:
        found = [each["number"] for batch in batches for each in batch.metadata]
    loader.close()
    return found


def test_a_remote_dataset_gives_the_batches_of_the_local_one(
    remote: str, built: Path, cache: Path
) -> None:
    assert numbers_of(remote) == numbers_of(built)
    shards = [each for each in files_below(cache) if each.stat().st_size == SHARD_BYTES]
    assert len(shards) == 12
    dataset = open_dataset(remote)
    assert dataset.fingerprint == open_dataset(built).fingerprint
    assert dataset.tokenizer_dir is not None
    assert [each.name for each in dataset.tokenizer_dir.iterdir()] == ["tokenizer.json"]
    assert not [each for each in files_below(cache) if each.suffix == ".part"]


class Counted:
    """Counts what a filesystem is asked for."""

    def __init__(self, files: Any) -> None:
        self.asked: Counter[str] = Counter()
        self._files = files

    def __getattr__(self, name: str) -> Any:
        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            self.asked[f"{name} {path.rsplit('/', 1)[-1]}"] += 1
            return getattr(self._files, name)(path, *args, **kwargs)

        return call


@pytest.mark.slow
def test_opening_ten_thousand_remote_shards_reads_the_lists_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    from pipeline.shards import remote as module

    source = open_dataset(built)
    index = (built / "index.bin").read_bytes()
    entries = [
        ShardEntry(**{**vars(source.shards[i % 12]), "path": f"parts/{i}.tar"})
        for i in range(10_000)
    ]
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "index.bin").write_bytes(index)
    (folder / "shards.json").write_text(dump_declaration([CODES], [CLIP], entries))
    (folder / "_SUCCESS").touch()
    (folder / "manifest.parquet").touch()  # it is not asked for
    counted: list[Counted] = []
    real = module._filesystem

    def filesystem(url: str) -> tuple[Counted, str]:
        files, root = real(url)
        counted.append(Counted(files))
        return counted[-1], root

    monkeypatch.setattr(module, "_filesystem", filesystem)
    dataset = open_dataset(f"file://{folder}")
    samples = dataset.samples("train")
    assert len(samples) == 200_000
    assert samples.keys().shape == (200_000, 2)
    read = Counter({k: v for k, v in counted[0].asked.items() if k.split()[0] not in ("exists",)})
    assert not [each for each in read if each.endswith(".tar")]
    assert sum(read.values()) <= 5
    assert read["open index.bin"] == 1


def test_the_cache_keeps_to_its_limit_and_reading_goes_on(
    built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_bytes = (built / "index.bin").stat().st_size
    limit = 5 * SHARD_BYTES + index_bytes
    monkeypatch.setenv("TESSERA_CACHE_BYTES", str(limit))
    sizes = []
    make_room = FileCache._make_room

    def watched(self: FileCache, size_bytes: int) -> None:
        make_room(self, size_bytes)
        sizes.append(self.size_bytes() + size_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(FileCache, "_make_room", watched)
        assert sorted(numbers_of(f"file://{built}")) == list(range(240))
    assert len(sizes) >= 13
    assert 4 * SHARD_BYTES < max(sizes) <= limit
    assert sorted(numbers_of(f"file://{built}", "global")) == list(range(240))  # a batch: 10 shards


READER = """
import sys
from pipeline.shards import Loader, LoaderConfig, open_dataset
config = LoaderConfig(global_batch_size=10, order="window", window_shards=2, seed=int(sys.argv[2]))
loader = Loader(open_dataset(sys.argv[1]).by_bucket("train"), config)
with loader.batches(0, 48) as batches:
    print(sum(each["number"] for batch in batches for each in batch.metadata))
loader.close()
"""


@pytest.mark.multiprocess
def test_several_processes_share_a_small_cache(built: Path, cache: Path) -> None:
    environment = os.environ | {"TESSERA_CACHE_BYTES": str(6 * SHARD_BYTES)}
    command = [sys.executable, "-c", READER, f"file://{built}"]
    readers = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True, env=environment)
        for seed in range(3)
    ]
    assert [int(each.communicate(timeout=120)[0]) for each in readers] == [2 * sum(range(240))] * 3
    afterwards = FileCache(cache / "shards", 6 * SHARD_BYTES)
    afterwards.open("small", 1, None, lambda: iter([b"a"])).close()
    assert afterwards.size_bytes() <= 6 * SHARD_BYTES
    assert not [each for each in files_below(cache) if each.suffix == ".part"]


def test_a_remote_shard_that_is_not_what_was_declared_is_an_error(
    built: Path, tmp_path: Path, cache: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    first, second = sorted((copy / "parts").glob("*.tar"))[:2]
    data = bytearray(first.read_bytes())
    data[3000] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes() + bytes(512))
    samples = open_dataset(f"file://{copy}").samples("train")
    with pytest.raises(ShardError, match=r"000000\.tar: .* has not the sha256 that was declared"):
        samples.gather([0])
    with pytest.raises(ShardError, match=r"000001\.tar: .* has not the size that was declared"):
        samples.gather([20])
    first.unlink()
    with pytest.raises(ShardError, match="missing shard"):
        samples.gather([0])
    assert samples.gather([40]).tolist() == [[40] * 8]
    assert len(files_below(cache / "shards")) >= 2
    assert not [each for each in files_below(cache) if each.suffix == ".part"]


def test_what_a_killed_fetch_left_is_removed_and_used_files_are_not(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    (tmp_path / "dead.part").write_bytes(bytes(700))
    with cache.open("a", 400, None, lambda: iter([bytes(400)])):
        assert not (tmp_path / "dead.part").exists()
        with cache.open("b", 400, None, lambda: iter([bytes(400)])):
            pass
        with cache.open("c", 400, None, lambda: iter([bytes(400)])):
            assert not (tmp_path / "b").exists()
            assert (tmp_path / "a").exists()
    fetched = []
    for _ in range(2):
        cache.open("a", 400, None, lambda: fetched.append(1) or iter([bytes(400)])).close()
    assert not fetched


def test_a_store_that_is_none_and_a_limit_that_is_none_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nowhere"):
        open_dataset("nowhere://bucket/data")
    with pytest.raises(UserError, match="no finished dataset there"):
        open_dataset(f"file://{tmp_path}/none")
    monkeypatch.setenv("TESSERA_CACHE_BYTES", "much")
    with pytest.raises(UserError, match="must be a number of bytes"):
        cache_bytes()
