"""The writer: byte for byte the tar that `tarfile` makes, its sidecar, datasets without a build."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, TokenSet, canonical_json, parse_declaration
from pipeline.shards.hashing import HashingStream
from pipeline.shards.npy import array_header, parse_array_header
from pipeline.shards.packing import pack_codes
from pipeline.shards.sidecar import clip_digest, code_key_words, key_digest, parse_sidecar
from pipeline.shards.writer import ShardWriter
from tokenizer.scales import image_and_clip, single_grid
from tokenizer.settings import UserError

Sample = tuple[str, dict[str, np.ndarray], dict[str, Any]]
DTYPES = ("<u2", "<u4", "<f2", "u1", ">i4", "<f8", "?", "<c8")
# The bytes of `some_samples()` at format version 2; a change here is a change of the format.
TAR_SHA256 = "66d9314c420f71d01856f7d36664a148703a6ca572a4b7404598aa912a2f617a"
SIDECAR_SHA256 = "957abcb9ad83df5ce7dc8f7a34679d6866ba64cda3652df6b8d7ab5af7c4044a"


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return stream.getvalue()


def tar_by_tarfile(samples: list[Sample]) -> bytes:
    """The slow twin: what a shard is, written with the standard library."""
    stream = io.BytesIO()
    for key, arrays, metadata in samples:
        members = [(name, npy(array)) for name, array in arrays.items()]
        for extension, payload in [*members, ("json", canonical_json(metadata))]:
            entry = tarfile.TarInfo(f"{key}.{extension}")
            entry.size, entry.mode = len(payload), 0o444
            stream.write(entry.tobuf(tarfile.USTAR_FORMAT))
            stream.write(payload + bytes(-len(payload) % 512))
    return stream.getvalue() + bytes(1024)


def written(samples: list[Sample]) -> tuple[bytes, bytes]:
    """(tar, sidecar) of these samples."""
    stream = io.BytesIO()
    writer = ShardWriter(stream, tuple(samples[0][1]))
    for key, arrays, metadata in samples:
        writer.write(key, arrays, metadata)
    sidecar = writer.close()
    return stream.getvalue(), sidecar


def some_samples(count: int = 40) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        (
            f"clip_{number:04d}",
            {
                "codes.npy": random.integers(0, 512, 21).astype(np.uint16),
                "frames.npy": random.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8),
            },
            {"caption": "déjà vu " * (number % 70), "number": number},
        )
        for number in range(count)
    ]


def test_a_shard_is_what_tarfile_writes_and_its_bytes_are_frozen() -> None:
    tar, sidecar = written(some_samples())
    assert tar == tar_by_tarfile(some_samples())
    assert hashlib.sha256(tar).hexdigest() == TAR_SHA256
    assert hashlib.sha256(sidecar).hexdigest() == SIDECAR_SHA256


LETTERS = st.characters(exclude_categories=["Cs"])  # all of UTF-8; its list by codec takes seconds


@settings(deadline=None, max_examples=60)
@given(
    st.text("abcXYZ012_-", min_size=1, max_size=90),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(LETTERS, max_size=5), st.text(LETTERS, max_size=400), max_size=3),
    st.booleans(),
)
def test_any_key_array_and_metadata_give_the_bytes_of_tarfile(
    key: str, dtype: str, shape: list[int], metadata: dict[str, Any], in_fortran_order: bool
) -> None:
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    array = np.asfortranarray(array) if in_fortran_order else array
    sample = (key, {"codes.npy": array}, metadata)
    assert written([sample])[0] == tar_by_tarfile([sample])


def test_the_sidecar_says_where_each_member_is_and_who_the_samples_are() -> None:
    tar, data = written(some_samples())
    sidecar = parse_sidecar(data, "sidecar")
    assert sidecar.members == ("codes.npy", "frames.npy", "json")
    assert sidecar.tar_bytes == len(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        entries = opened.getmembers()
    for place, entry in zip(sidecar.places.reshape(-1), entries, strict=True):
        payload = tar[entry.offset_data : entry.offset_data + entry.size]
        assert place.tolist() == (entry.offset_data, entry.size, zlib.crc32(payload))
    keys = [tuple(row) for row in sidecar.samples["key"].tolist()]
    assert keys == [key_digest(key) for key, _, _ in some_samples()]


def test_views_share_a_clip_and_codes_carry_how_they_were_made() -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream, ())
    writer.write("a_0", {}, {}, clip="a", code_key="0f" * 16)
    writer.write("a_1", {}, {}, clip="a")
    samples = parse_sidecar(writer.close(), "sidecar").samples
    assert samples["clip"].tolist() == [clip_digest("a")] * 2
    assert samples["code_key"].tolist() == [list(code_key_words("0f" * 16)), [0, 0]]
    with pytest.raises(ValueError, match="is not 32 hexadecimal digits"):
        writer.write("a_2", {}, {}, code_key="0f")


def test_a_sample_that_is_refused_leaves_nothing_behind() -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream, ("codes.npy",))
    codes = np.zeros(3, dtype=np.uint16)
    writer.write("a", {"codes.npy": codes}, {})
    before = stream.getvalue()
    refused: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("a.b", {"codes.npy": codes}, {}, "key 'a.b' must be 1 to 90 letters"),
        ("../a", {"codes.npy": codes}, {}, "must be 1 to 90 letters"),
        ("b" * 91, {"codes.npy": codes}, {}, "must be 1 to 90 letters"),
        ("a", {"codes.npy": codes}, {}, "sample a is in this shard already"),
        ("b", {"frames.npy": codes}, {}, r"sample b has \['frames.npy'\], not \['codes.npy'\]"),
        ("b", {"codes.npy": np.array([{}])}, {}, "an array of object would be pickled"),
        ("b", {"codes.npy": codes}, {"score": float("nan")}, "Out of range float"),
    ]
    for key, arrays, metadata, message in refused:
        with pytest.raises(ValueError, match=message):
            writer.write(key, arrays, metadata)
    assert stream.getvalue() == before
    writer.write("b", {"codes.npy": codes}, {})
    assert len(parse_sidecar(writer.close(), "sidecar").samples) == 2


def test_long_members_leave_less_room_for_the_key() -> None:
    writer = ShardWriter(io.BytesIO(), (f"{'x' * 40}.npy",))
    with pytest.raises(ValueError, match="must be 1 to 55 letters"):
        writer.write("k" * 56, {f"{'x' * 40}.npy": np.zeros(1)}, {})


def test_the_hash_of_a_stream_is_the_hash_of_its_file(tmp_path: Path) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        stream = HashingStream(file)
        writer = ShardWriter(stream, ("codes.npy", "frames.npy"))
        for sample in some_samples():
            writer.write(*sample)
        writer.close()
    data = (tmp_path / "a.tar").read_bytes()
    assert stream.sha256() == hashlib.sha256(data).hexdigest()
    assert stream.size_bytes == len(data)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 10**6), max_size=8))
def test_array_headers_are_numpys_and_read_back(dtype: str, shape: list[int]) -> None:
    header = array_header(np.dtype(dtype), tuple(shape))
    stream = io.BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    expected = np.lib.format.read_array_header_1_0(stream)
    if np.dtype(dtype).kind == "c":
        return
    read = parse_array_header(header + b"payload", "here")
    assert (read.shape, read.fortran_order, read.dtype) == expected
    assert read.header_bytes == len(header)


SCHEDULE = image_and_clip(3, (1, 2))
GRID = single_grid(3, 2, 2)
SETS = [
    TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=512, tokenizer="t"),
    TokenSet(name="fine", kind="codes", dtype="uint32", codebook_size=1 << 18, tokenizer="u"),
    TokenSet(name="bits", kind="codes", dtype="bits", codebook_size=1 << 13, tokenizer="v"),
    TokenSet(name="latents", kind="latents", dtype="float16"),
    TokenSet(name="frames", kind="frames", dtype="uint8"),
]
CLIP = Bucket(
    name="t9_h64_w64",
    num_frames=9,
    height=64,
    width=64,
    schedule=SCHEDULE,
    schedules={"fine": GRID, "bits": SCHEDULE},
)


def arrays_of(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    return {
        "codes": random.integers(0, 512, SCHEDULE.num_tokens).astype(np.uint16),
        "fine": random.integers(0, 1 << 18, GRID.num_tokens).astype(np.uint32),
        "bits": random.integers(0, 1 << 13, SCHEDULE.num_tokens),
        "latents": random.normal(size=(3, 4, 4)).astype(np.float16),
        "frames": random.integers(0, 256, (9, 8, 8, 3)).astype(np.uint8),
    }


def make_dataset(root: Path, count: int = 7) -> Path:
    one = single_grid(1, 1, 1)
    image = Bucket(name="t1_h8_w8", num_frames=1, height=8, width=8, schedules={"bits": one})
    with DatasetWriter(root, SETS, [CLIP, image], samples_per_shard=3) as writer:
        for number in range(count):
            split = "val" if number % 3 == 2 else "train"
            writer.write(
                f"{number:04d}",
                arrays_of(number),
                {"number": number},
                split=split,
                bucket=CLIP.name,
            )
    return root


def test_a_dataset_without_a_build_has_all_its_token_sets(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data")
    text = (root / "shards.json").read_text()
    _, token_sets, buckets, shards = parse_declaration(text, "shards.json")
    assert token_sets == SETS
    assert buckets == [CLIP]
    assert [(each.path, each.split, each.num_samples) for each in shards] == [
        ("parts/train-t9_h64_w64-000000.tar", "train", 3),
        ("parts/train-t9_h64_w64-000001.tar", "train", 2),
        ("parts/val-t9_h64_w64-000000.tar", "val", 2),
    ]
    index = (root / "index.bin").read_bytes()
    for shard in shards:
        path = root / shard.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        sidecar = index[shard.index_offset : shard.index_offset + shard.index_bytes]
        assert path.with_suffix(".idx").read_bytes() == sidecar
    assert (root / "_SUCCESS").exists()
    tars = [str(root / each.path) for each in shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert sorted(each["__key__"] for each in samples) == [f"{n:04d}" for n in range(7)]
    for sample in samples:
        expected = arrays_of(sample["json"]["number"])
        expected["bits"] = pack_codes(expected["bits"], 13)
        for name, array in expected.items():
            assert np.array_equal(sample[f"{name}.npy"], array)
            assert sample[f"{name}.npy"].dtype == array.dtype


def test_the_same_samples_give_the_same_folder(tmp_path: Path) -> None:
    files = [
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        for root in (make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b"))
    ]
    assert files[0] == files[1]


def test_an_interrupted_writer_leaves_no_dataset(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with DatasetWriter(tmp_path, SETS, [CLIP]) as writer:
            writer.write("a", arrays_of(0), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert not (tmp_path / "_SUCCESS").exists()
    with pytest.raises(UserError, match="holds a dataset already"):
        DatasetWriter(tmp_path, SETS, [CLIP])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("codes", np.zeros(15, np.uint32), "codes of sample a: uint32 is not uint16"),
        ("codes", np.full(15, 512, np.uint16), "code 512 is not below 512"),
        ("codes", np.zeros(14, np.uint16), "14 codes, not 15"),
        ("codes", np.zeros((3, 5), np.uint16), r"stored flat, not as \(3, 5\)"),
        ("fine", np.zeros(15, np.uint32), "15 codes, not 12"),
        ("bits", np.full(15, -1), r"codes must lie in \[0, 2\*\*13\)"),
        ("frames", np.zeros((9, 8, 9, 3), np.uint8), "in a bucket of"),
    ],
)
def test_an_array_that_is_not_what_was_declared_is_named(
    tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    writer = DatasetWriter(tmp_path, SETS, [CLIP])
    writer.write("first", arrays_of(0), {})
    with pytest.raises(ValueError, match=message):
        writer.write("a", arrays_of(1) | {name: array}, {})


def test_a_dataset_declares_no_bucket_that_holds_nothing(tmp_path: Path) -> None:
    declared = json.loads((make_dataset(tmp_path / "data") / "shards.json").read_text())
    assert [each["name"] for each in declared["buckets"]] == [CLIP.name]


def test_packed_codes_need_a_schedule_to_be_read_by(tmp_path: Path) -> None:
    image = Bucket(name="t1_h8_w8", num_frames=1, height=8, width=8)
    with pytest.raises(ValueError, match="bits: packed codes need a schedule"):
        DatasetWriter(tmp_path / "data", SETS, [CLIP, image])
    with pytest.raises(ValueError, match=r"name is '\.\./codes'"):
        DatasetWriter(tmp_path, [TokenSet(name="../codes", kind="codes", dtype="uint16")], [CLIP])
    assert not (tmp_path / "data").exists()
