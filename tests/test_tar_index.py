"""Tars without a sidecar: the samples are those that stock webdataset reads, at the bytes named."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.format import ShardError
from pipeline.shards.npy import parse_array_header
from pipeline.shards.sidecar import parse_sidecar
from pipeline.shards.tarindex import index_tar
from pipeline.shards.writer import ShardWriter

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def tar_of(path: Path, members: list[tuple[str, bytes]], tar_format: int, mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, payload in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(payload), mtime  # type: ignore[assignment]
            tar.addfile(entry, io.BytesIO(payload))
    return path


def samples_by_webdataset(path: Path) -> list[dict[str, Any]]:
    """Key and payloads of each sample, as the stock library groups them."""
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    reserved = ("__url__", "__local_path__")
    return [{k: v for k, v in sample.items() if k not in reserved} for sample in samples]


def samples_by_index(path: Path) -> list[dict[str, Any]]:
    index, data = index_tar(path), path.read_bytes()
    samples = []
    for key, places in zip(index.keys, index.sidecar.places, strict=True):
        sample: dict[str, Any] = {"__key__": key}
        for member, place in zip(index.sidecar.members, places.tolist()):
            offset, length, crc32 = place
            if offset:
                sample[member] = data[offset : offset + length]
                assert zlib.crc32(sample[member]) == crc32
        samples.append(sample)
    return samples


NAMES = st.sampled_from(
    ["0001", "b-1", "a.x/0001", "./0002", "deep/er/0003", "ключ", "x" * 95, "long/" * 30 + "0004"]
)
EXTENSIONS = st.sampled_from(["json", "codes.npy", "JPG", "cls", "x.y.z", "txt"])


@settings(deadline=None, max_examples=80)
@given(
    st.dictionaries(NAMES, st.sets(EXTENSIONS, min_size=1, max_size=3), min_size=1, max_size=5),
    st.sampled_from(FORMATS),
    st.sampled_from([0, 1.5]),
)
def test_samples_are_those_of_webdataset(
    tmp_path_factory: pytest.TempPathFactory,
    samples: dict[str, set[str]],
    tar_format: int,
    mtime: float,
) -> None:
    if tar_format == tarfile.USTAR_FORMAT:
        samples = {key: value for key, value in samples.items() if len(key) < 90} or {"a": {"txt"}}
    members = [("a_folder_without_samples/README", b"text"), ("__meta__/x.json", b"{}")]
    for number, (key, extensions) in enumerate(samples.items()):
        for extension in sorted(extensions):
            payload = npy(np.arange(number * 7 % 600, dtype=np.uint16))
            members.append((f"{key}.{extension}", payload))
    path = tar_of(tmp_path_factory.mktemp("tar") / "a.tar", members, tar_format, mtime)
    assert samples_by_index(path) == samples_by_webdataset(path)


def test_the_index_of_our_own_tar_is_its_sidecar(tmp_path: Path) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        writer = ShardWriter(file, ("codes.npy", "latents.npy"))
        for number in range(30):
            latents = np.ones((2, 3), dtype=np.float16)
            arrays = {"codes.npy": np.arange(9, dtype=np.uint16), "latents.npy": latents}
            writer.write(f"{number:03d}", arrays, {"n": number})
        sidecar = parse_sidecar(writer.close(), "sidecar")
    index = index_tar(tmp_path / "a.tar")
    assert index.sidecar.members == sidecar.members
    assert index.sidecar.tar_bytes == sidecar.tar_bytes
    assert np.array_equal(index.sidecar.places, sidecar.places)
    assert np.array_equal(index.sidecar.samples, sidecar.samples)
    header = index.arrays["latents.npy"].headers[0]
    assert (header.shape, header.dtype) == ((2, 3), np.float16)
    assert not index_tar(tmp_path / "a.tar", crc=False).sidecar.places["crc32"].any()


def test_long_names_are_cut_in_the_middle_of_a_letter_only_in_their_headers(tmp_path: Path) -> None:
    names = [f"{'я' * length}.txt" for length in (60, 61, 99, 200)] + [f"a{'я' * 70}.txt"]
    for number, tar_format in enumerate(FORMATS[1:]):
        path = tmp_path / f"{number}.tar"
        tar_of(path, [(name, b"text") for name in names], tar_format)
        assert [f"{key}.txt" for key in index_tar(path).keys] == names
        assert samples_by_index(path) == samples_by_webdataset(path)


def test_arrays_of_many_shapes_are_told_apart(tmp_path: Path) -> None:
    shapes = [(3,), (4,), (3,), (2, 2), (), (0,), (3,)]
    members = [(f"{n}.npy", npy(np.zeros(shape, "<u4"))) for n, shape in enumerate(shapes)]
    members.insert(2, ("1.txt", b"only here"))
    members.append(("only_text.txt", b""))
    arrays = index_tar(tar_of(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)).arrays["npy"]
    found = [arrays.headers[number].shape for number in arrays.header_of[:-1]]
    assert found == shapes
    assert arrays.header_of[-1] == -1


def test_headers_that_numpy_writes_longer_or_otherwise_are_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype="<u2").reshape(2, 3)
    texts = {
        "order": b"{'shape':(2,3),'descr':\"<u2\",'fortran_order':False}",
        "spaces": b"{ 'descr' : '<u2' , 'fortran_order' : False , 'shape' : ( 2, 3 ) , }",
        "long": b"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }".ljust(900),
    }
    payloads = {"second": b"\x93NUMPY\x02\x00" + struct.pack("<I", 200) + npy(array)[10:-13]}
    payloads["second"] = payloads["second"].ljust(211) + b"\n" + array.tobytes()
    for name, text in texts.items():
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1)
        payloads[name] = head + text + b"\n" + array.tobytes()
    members = [(f"{name}.npy", payload) for name, payload in payloads.items()]
    index = index_tar(tar_of(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT))
    assert {header.shape for header in index.arrays["npy"].headers} == {(2, 3)}
    for payload in payloads.values():
        assert np.array_equal(np.load(io.BytesIO(payload)), array)
        assert payload[parse_array_header(payload, "x").header_bytes :] == array.tobytes()


def test_pickles_are_listed_and_never_opened(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "run").encode()
    members = [(f"0.{extension}", bomb) for extension in ("pkl", "pyd", "pth", "pt", "pickle")]
    index = index_tar(tar_of(tmp_path / "a.tar", members, tarfile.PAX_FORMAT))
    assert index.sidecar.members == ("pkl", "pyd", "pth", "pt", "pickle")
    assert index.arrays == {}
    assert os.listdir(tmp_path) == ["a.tar"]


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "empty.tar").touch()
    for name, message in (
        ("pipe.tar", "not a plain file"),
        (".", "a folder, not a tar"),
        ("missing.tar", "no such file"),
        ("empty.tar", "0 bytes are not a sound tar"),
    ):
        with pytest.raises(ShardError, match=message):
            index_tar(tmp_path / name)
