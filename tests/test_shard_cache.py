"""Stock tars and remote shards: read through the cache, which holds nothing that is not checked."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.shards import Loader, LoaderConfig, ShardError, open_dataset, stock
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
