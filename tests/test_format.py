"""Version 2 of the format: fixtures are read for good, and `docs/format.md` is all one needs.

`independent_reader` was written from that page: it uses nothing of Tessera, nor numpy, so what the
page leaves out would fail here.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tarfile
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline.clip import Clip
from pipeline.shards import open_dataset
from pipeline.shards.format import DTYPES, KINDS, Bucket, ShardEntry, TokenSet
from pipeline.shards.sidecar import clip_digest
from pipeline.shards.tarindex import index_tar

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
FORMATS = {"uint16": "H", "uint32": "I", "float16": "e", "uint8": "B", "bits": "B"}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def independent_reader(root: Path) -> list[dict[str, Any]]:
    """Every sample of a dataset: key digests, split, arrays as flat lists, and JSON."""
    assert (root / "_SUCCESS").exists()
    declared = json.loads((root / "shards.json").read_text(encoding="utf-8"))
    assert declared["format_version"] == 2
    shards = [[each["split"], each["bucket"], each["sha256"]] for each in declared["shards"]]
    identity = canonical([declared["token_sets"], declared["buckets"], shards])
    assert hashlib.sha256(identity).hexdigest() == declared["fingerprint"]
    buckets = {each["name"]: each for each in declared["buckets"]}
    index = (root / "index.bin").read_bytes()
    found = []
    for shard in declared["shards"]:
        tar = (root / shard["path"]).read_bytes()
        assert len(tar) == shard["size_bytes"]
        assert hashlib.sha256(tar).hexdigest() == shard["sha256"]
        start = shard["index_offset"]
        sidecar = index[start : start + shard["index_bytes"]]
        assert sidecar[:8] == b"TESSIDX2"
        header_bytes, crc32 = struct.unpack("<II", sidecar[8:16])
        assert zlib.crc32(sidecar[16:]) == crc32
        assert (16 + header_bytes) % 64 == 0
        header = json.loads(sidecar[16 : 16 + header_bytes])
        assert header["tar_bytes"] == len(tar)
        assert header["count"] == shard["num_samples"]
        first_place = 16 + header_bytes + 40 * header["count"]
        for row in range(header["count"]):
            at = 16 + header_bytes + 40 * row
            sample: dict[str, Any] = {"split": shard["split"], "key": sidecar[at : at + 16]}
            sample |= {"clip": sidecar[at + 16 : at + 24], "code_key": sidecar[at + 24 : at + 40]}
            for number, member in enumerate(header["members"]):
                at = first_place + 16 * (row * len(header["members"]) + number)
                offset, length, crc32 = struct.unpack("<QII", sidecar[at : at + 16])
                payload = tar[offset : offset + length]
                assert offset % 512 == 0
                assert zlib.crc32(payload) == crc32
                sample[member] = payload
            sample["json"] = json.loads(sample["json"])
            for token_set in declared["token_sets"]:
                payload = sample.pop(f"{token_set['name']}.npy")
                sample[token_set["name"]] = array(payload, token_set, buckets[shard["bucket"]])
            found.append(sample)
    return found


def array(payload: bytes, token_set: dict[str, Any], bucket: dict[str, Any]) -> list[Any]:
    assert payload[:8] == b"\x93NUMPY\x01\x00"
    body = payload[10 + struct.unpack("<H", payload[8:10])[0] :]
    letter = FORMATS[token_set["dtype"]]
    values = list(struct.unpack(f"<{len(body) // struct.calcsize(letter)}{letter}", body))
    if token_set["dtype"] != "bits":
        return values
    schedule = bucket["schedules"].get(token_set["name"], bucket["schedule"])
    num_codes = sum(t * h * w for _, _, t, h, w in schedule)
    width = token_set["bits_per_code"]
    assert len(body) == -(-num_codes * width // 8)
    string = int.from_bytes(body, "little")
    return [string >> index * width & (1 << width) - 1 for index in range(num_codes)]


def expected(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def test_a_reader_written_from_the_page_reads_a_build() -> None:
    samples = expected("format_v2")
    found = independent_reader(FIXTURES / "format_v2")
    assert len(found) == len(samples) == 6
    for sample in found:
        key = sample["json"]["key"]
        wanted = samples[key]
        assert sample["key"] == digest(key, 16)
        assert sample["clip"] == digest(key.rpartition("_")[0], 8)
        assert any(sample["code_key"])
        assert sample["codes"] == wanted["codes"]
        assert sample["json"] == wanted["metadata"]
        assert sample["split"] == wanted["split"]


def test_a_reader_written_from_the_page_reads_every_kind_of_token_set() -> None:
    samples = expected("format_v2_sets")
    found = {each["key"]: each for each in independent_reader(FIXTURES / "format_v2_sets")}
    assert len(found) == len(samples) == 5
    for key, wanted in samples.items():
        sample = found[digest(key, 16)]
        assert sample["clip"] == digest(wanted["clip"], 8)
        assert sample["code_key"].hex() == f"{wanted['metadata']['n']:032x}"
        assert sample["json"] == wanted["metadata"]
        for name in ("codes", "wide", "packed"):
            assert sample[name] == wanted[name]
        assert sample["latents"] == np.ravel(wanted["latents"]).tolist()
        assert sum(sample["frames"]) == wanted["frames"]


def test_version_2_reads_as_it_was_written() -> None:
    dataset = open_dataset(FIXTURES / "format_v2")
    samples = expected("format_v2")
    for split, count in (("train", 4), ("val", 2)):
        chosen = dataset.samples(split)
        everything = np.arange(len(chosen))
        assert len(chosen) == count
        for codes, metadata in zip(chosen.gather(everything), chosen.metadata(everything)):
            assert codes.tolist() == samples[metadata["key"]]["codes"]
            assert metadata == samples[metadata["key"]]["metadata"]


def test_every_kind_of_token_set_reads_as_it_was_written() -> None:
    dataset = open_dataset(FIXTURES / "format_v2_sets")
    samples = {each["metadata"]["n"]: each for each in expected("format_v2_sets").values()}
    chosen = dataset.samples(None)
    everything = np.arange(5)
    numbers = [each["n"] for each in chosen.metadata(everything)]
    assert sorted(numbers) == list(range(5))
    for name, dtype in (("codes", "uint16"), ("wide", "uint32"), ("packed", "uint16")):
        arrays = chosen.gather(everything, name)
        assert arrays.dtype == dtype
        assert arrays.tolist() == [samples[number][name] for number in numbers]
    latents = chosen.gather(everything, "latents")
    assert latents.dtype == np.float16
    assert latents.tolist() == [samples[number]["latents"] for number in numbers]
    frames = chosen.gather(everything, "frames").astype(np.int64).sum(axis=(1, 2, 3, 4))
    assert frames.tolist() == [samples[number]["frames"] for number in numbers]
    clips = [clip_digest(samples[number]["clip"]) for number in numbers]
    assert chosen.clips().tolist() == clips


@pytest.mark.parametrize("name", ["format_v1", "format_v2", "format_v2_sets"])
def test_the_tars_of_every_version_are_stock_tars(name: str) -> None:
    samples = expected(name)
    tars = sorted((FIXTURES / name / "parts").glob("*.tar"))
    found = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode())
    assert {each["__key__"] for each in found} == set(samples)
    for sample in found:
        wanted = samples[sample["__key__"]]
        assert sample["codes.npy"].tolist() == wanted["codes"]
        assert sample["json"] == wanted["metadata"]
    assert [key for tar in tars for key in index_tar(tar).keys] == [s["__key__"] for s in found]
    with tarfile.open(tars[0]) as opened:
        assert {entry.mode for entry in opened} == {0o444}


def test_the_page_names_everything_that_is_declared() -> None:
    named = set(re.findall(r"[a-z_0-9]+", PAGE))
    for cls in (TokenSet, Bucket, ShardEntry, Clip):
        missing = {each.name for each in fields(cls)} - named
        assert not missing
    assert set(KINDS) | set(DTYPES) <= named
