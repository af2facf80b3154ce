"""The shard format: what is written is read, by us and by stock webdataset, and damage is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.shards import open_dataset
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, ShardError, TokenSet, parse_declaration
from pipeline.shards.order import shuffled
from pipeline.shards.sidecar import parse_sidecar
from pipeline.shards.writer import ShardWriter
from tokenizer.scales import image_and_clip
from tokenizer.settings import UserError

SCHEDULE = image_and_clip(3, (1, 2))
CODES = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=512, tokenizer="t")
FRAMES = TokenSet(name="frames", kind="frames", dtype="uint8")


def shard_bytes(arrays: np.ndarray, member: str, first: int = 0) -> tuple[bytes, bytes]:
    stream = io.BytesIO()
    writer = ShardWriter(stream, (member,))
    for index, array in enumerate(arrays):
        writer.write(f"clip_{first + index:04d}", {member: array}, {"number": first + index})
    sidecar = writer.close()
    return stream.getvalue(), sidecar


def make_dataset(root: Path, token_set: TokenSet, arrays: np.ndarray, per_shard: int = 5) -> Path:
    schedule = SCHEDULE if token_set.kind == "codes" else None
    bucket = Bucket(name="t9_h64_w64", num_frames=9, height=64, width=64, schedule=schedule)
    with DatasetWriter(root, [token_set], [bucket], samples_per_shard=per_shard) as writer:
        for number, array in enumerate(arrays):
            writer.write(f"clip_{number:04d}", {token_set.name: array}, {"number": number})
    return root


def shard_path(root: Path, number: int) -> Path:
    return root / f"parts/train-t9_h64_w64-{number:06d}.tar"


@pytest.fixture
def codes() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 512, (23, SCHEDULE.num_tokens), dtype=np.uint16)


def test_stock_webdataset_reads_a_shard(tmp_path: Path, codes: np.ndarray) -> None:
    tar, _ = shard_bytes(codes, "codes.npy")
    (tmp_path / "shard.tar").write_bytes(tar)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"clip_{i:04d}" for i in range(23)]
    assert all(np.array_equal(s["codes.npy"], row) for s, row in zip(samples, codes))
    assert samples[7]["json"] == {"number": 7}


def test_the_same_samples_give_the_same_bytes(codes: np.ndarray) -> None:
    assert shard_bytes(codes, "codes.npy") == shard_bytes(codes.copy(), "codes.npy")


def test_members_are_adjacent_plain_files_without_owner_or_time(codes: np.ndarray) -> None:
    tar, _ = shard_bytes(codes, "codes.npy")
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = opened.getmembers()
    keys = [member.name.split(".", 1)[0] for member in members]
    assert keys == sorted(keys)
    assert all(member.isreg() for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


@pytest.mark.parametrize("token_set", [CODES, FRAMES])
def test_gather_gives_the_rows_asked_for_in_any_order(
    tmp_path: Path, codes: np.ndarray, token_set: TokenSet
) -> None:
    arrays = codes
    if token_set.kind == "frames":
        arrays = np.random.default_rng(1).integers(0, 256, (23, 9, 64, 64, 3), dtype=np.uint8)
    samples = open_dataset(make_dataset(tmp_path, token_set, arrays)).samples("train")
    wanted = [22, 0, 5, 4, 5, 17]
    assert np.array_equal(samples.gather(wanted), arrays[wanted])
    assert [each["number"] for each in samples.metadata(wanted)] == wanted
    assert len(samples) == 23


def test_a_damaged_sample_is_named_when_it_is_first_read(tmp_path: Path, codes: np.ndarray) -> None:
    make_dataset(tmp_path, CODES, codes)
    data = bytearray(shard_path(tmp_path, 1).read_bytes())
    places = parse_sidecar((tmp_path / "index.bin").read_bytes()[: _first(tmp_path)], "index")
    offset = int(places.places["offset"][2, 0]) + 130
    data[offset] ^= 1
    shard_path(tmp_path, 1).write_bytes(data)
    samples = open_dataset(tmp_path).samples("train")
    assert np.array_equal(samples.gather([5, 6]), codes[[5, 6]])
    with pytest.raises(ShardError, match=r"000001\.tar: sample clip_0007 \(row 2\) at byte \d+ is"):
        samples.gather([7])


def test_damaged_metadata_is_left_out_of_a_scan_when_asked(
    tmp_path: Path, codes: np.ndarray
) -> None:
    make_dataset(tmp_path, CODES, codes)
    data = bytearray(shard_path(tmp_path, 1).read_bytes())
    index = parse_sidecar((tmp_path / "index.bin").read_bytes()[: _first(tmp_path)], "index")
    column = index.members.index("json")
    for row in (0, 2, 3):
        data[int(index.places["offset"][row, column]) + 4] ^= 1
    shard_path(tmp_path, 1).write_bytes(data)
    samples = open_dataset(tmp_path).samples("train")
    sound = [number for number in range(len(samples)) if number not in (5, 7, 8)]
    found = [each["number"] for each in samples.each_metadata(skip_damaged=True)]
    assert found == sound
    with pytest.raises(ShardError, match="clip_0005"):
        list(samples.each_metadata())


def test_a_shard_cut_short_or_missing_is_refused(tmp_path: Path, codes: np.ndarray) -> None:
    make_dataset(tmp_path, CODES, codes)
    shard = shard_path(tmp_path, 0)
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ShardError, match="bytes, the index says"):
        open_dataset(tmp_path).samples("train").gather([0])
    shard.unlink()
    with pytest.raises(ShardError, match="missing shard"):
        open_dataset(tmp_path).samples("train").gather([0])


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, codes: np.ndarray) -> None:
    make_dataset(tmp_path, CODES, codes)
    declared = json.loads((tmp_path / "shards.json").read_text())
    declared["shards"][0]["path"] = "../outside.tar"
    with pytest.raises(ShardError, match="leaves the folder"):
        parse_declaration(json.dumps(declared), "shards.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 3, "format version 3"),
        ("token_sets", [{"name": "a", "kind": "sound", "dtype": "uint8"}], "unknown kind 'sound'"),
        ("token_sets", [{"name": "a", "kind": "codes", "dtype": "object"}], "unknown dtype"),
        ("shards", [{"path": "a.tar"}], "not a valid shard list"),
        ("buckets", 3, "not a valid shard list"),
    ],
)
def test_an_unknown_version_kind_or_dtype_is_an_error(
    tmp_path: Path, codes: np.ndarray, key: str, value: object, message: str
) -> None:
    declared = json.loads((make_dataset(tmp_path, CODES, codes) / "shards.json").read_text())
    declared[key] = value
    with pytest.raises(ShardError, match=message):
        parse_declaration(json.dumps(declared), "shards.json")


def test_garbage_sidecars_are_errors(tmp_path: Path, codes: np.ndarray) -> None:
    _, good = shard_bytes(codes, "codes.npy")
    generator = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        for place in generator.integers(0, len(good), 3):
            bad[place] = generator.integers(0, 256)
        cut = bad[: generator.integers(0, len(bad) + 1)]
        try:
            sidecar = parse_sidecar(bytes(cut), "index")
        except ShardError:
            continue
        assert sidecar.places.shape[1] == len(sidecar.members)


def test_an_unfinished_or_missing_dataset_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a finished dataset"):
        open_dataset(tmp_path)


def test_an_unknown_bucket_or_split_names_what_there_is(tmp_path: Path, codes: np.ndarray) -> None:
    dataset = open_dataset(make_dataset(tmp_path, CODES, codes))
    with pytest.raises(UserError, match="there are t9_h64_w64"):
        dataset.samples("train", "t1_h8_w8")
    with pytest.raises(UserError, match="no samples in split 'val'"):
        dataset.samples("val")


@pytest.mark.parametrize("length", [1, 2, 3, 23, 64, 1000, 4097])
def test_shuffling_is_a_bijection_that_changes_with_seed_and_epoch(length: int) -> None:
    order = shuffled(np.arange(length), length, seed=3, epoch=1)
    assert sorted(order) == list(range(length))
    if length >= 64:
        assert not np.array_equal(order, shuffled(np.arange(length), length, seed=3, epoch=2))
        assert not np.array_equal(order, shuffled(np.arange(length), length, seed=4, epoch=1))


def test_any_position_can_be_asked_for_alone() -> None:
    order = shuffled(np.arange(997), 997, seed=0, epoch=5)
    assert [int(shuffled([p], 997, seed=0, epoch=5)[0]) for p in (0, 500, 996)] == [
        order[0],
        order[500],
        order[996],
    ]


def _first(root: Path) -> int:
    return json.loads((root / "shards.json").read_text())["shards"][0]["index_bytes"]
