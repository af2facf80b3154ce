"""Sidecars, lists and datasets from anywhere: damaged and hostile ones, and only typed errors.

Every dataset is read under an audit hook: nothing outside the test's own folder may be opened,
nothing unpickled, executed or started.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.shards import open_dataset
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import (
    Bucket,
    ShardError,
    TokenSet,
    canonical_json,
    parse_declaration,
)
from pipeline.shards.sidecar import MAGIC, PLACE, SAMPLE, pack_sidecar, parse_sidecar
from tests.audit import only_reads_in
from tests.test_hostile_tars import mutated, sound_tars
from tokenizer.scales import single_grid
from tokenizer.settings import UserError

Random = np.random.Generator


def resealed(body: bytes, header_bytes: int) -> bytes:
    """A sidecar of this body whose crc32 is right."""
    return MAGIC + struct.pack("<II", header_bytes, zlib.crc32(body)) + body


def test_damaged_sidecars_never_raise_anything_else() -> None:
    samples = np.zeros(4, dtype=SAMPLE)
    places = np.array([[(512, 100, 1), (1024, 50, 2)]] * 4, dtype=PLACE)
    sound = pack_sidecar(("codes.npy", "json"), samples, places, 4096)
    assert len(parse_sidecar(sound, "index").samples) == 4
    random, refused = np.random.default_rng(0), []
    for number in range(3000):
        body = bytearray(sound[16:])
        header_bytes = struct.unpack("<I", sound[8:12])[0]
        for place in random.integers(0, len(body), random.integers(1, 4)):
            body[place] = random.integers(0, 256)
        if number % 3 == 0:
            body = body[: random.integers(0, len(body))]
        if number % 5 == 0:
            header_bytes = int(random.integers(0, 1 << 20))
        data = resealed(bytes(body), header_bytes)
        if number % 7 == 0:
            data = bytes(random.integers(0, 256, random.integers(0, 200), dtype=np.uint8))
        try:
            sidecar = parse_sidecar(data, "index")
        except ShardError as error:
            refused.append(str(error))
            continue
        ends = sidecar.places["offset"] + sidecar.places["length"]
        assert sidecar.places.shape == (len(sidecar.samples), len(sidecar.members))
        assert not ends.size or int(ends.max()) <= sidecar.tar_bytes
    assert all(text.startswith("index: ") for text in refused)
    assert 1000 < len(refused) < 3000


@pytest.mark.parametrize(
    "header_text",
    [
        b"[" * 60_000,
        b'{"members":["a"],"count":1e999,"tar_bytes":0}',
        b'{"members":["a"],"count":' + b"9" * 5000 + b',"tar_bytes":0}',
        b'{"members":["a"],"count":4000000000000,"tar_bytes":0}',
        b'{"members":["a"],"count":-1,"tar_bytes":0}',
        b'{"members":["a"],"count":true,"tar_bytes":0}',
        b'{"members":["a","a"],"count":0,"tar_bytes":0}',
        b'{"members":[],"count":0,"tar_bytes":0}',
        b'{"members":[["a"]],"count":0,"tar_bytes":0}',
        b'{"members":["a\\n"],"count":0,"tar_bytes":0}',
        b'{"members":"ab","count":0,"tar_bytes":0}',
        b'{"members":["a"],"count":0,"tar_bytes":1' + b"0" * 25 + b"}",
        b"null",
        b"",
        b"\xff\xfe",
    ],
)
def test_a_sidecar_header_that_lies_is_refused(header_text: bytes) -> None:
    with pytest.raises(ShardError, match="index: sidecar"):
        parse_sidecar(resealed(header_text, len(header_text)), "index")


def test_a_sidecar_that_points_between_blocks_or_behind_the_end_is_refused() -> None:
    samples = np.zeros(1, dtype=SAMPLE)
    for place in ((511, 1, 0), (513, 1, 0), (0, 1, 0), (4096, 1, 0), (1 << 63, 1, 0)):
        data = pack_sidecar(("a",), samples, np.array([[place]], dtype=PLACE), 4096)
        with pytest.raises(ShardError, match="sidecar points"):
            parse_sidecar(data, "index")


def make_dataset(root: Path, seed: int = 0) -> Path:
    grid = single_grid(3, 2, 2)
    bucket = Bucket(
        name="t9", num_frames=9, height=8, width=8, schedule=grid, schedules={"fine": grid}
    )
    sets = [
        TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=512, tokenizer="t"),
        TokenSet(name="fine", kind="codes", dtype="bits", codebook_size=1 << 11),
    ]
    random = np.random.default_rng(seed)
    with DatasetWriter(root, sets, [bucket], samples_per_shard=3) as writer:
        for number in range(7):
            arrays = {"codes": random.integers(0, 512, 12).astype(np.uint16)}
            arrays["fine"] = random.integers(0, 1 << 11, 12)
            writer.write(f"{number:04d}", arrays, {"caption": "a cat", "number": number})
    return root


def read_everything(root: Path) -> None:
    samples = open_dataset(root).samples("train")
    everything = np.arange(min(len(samples), 50))
    samples.gather(everything)
    samples.gather(everything, "fine")
    samples.metadata(everything)


HOSTILE_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("inf"), float("nan")),
    *("", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "parts", "x" * 5000, "\ud800"),
    *([], {}, [[]], [0] * 1000, {"name": "codes"}, [[0, 1, 10**6, 10**6, 10**6]]),
    *("object", "O", "frames", "codes", "uint8", "bits", [[0, 1, 1, 1, 1]]),
]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        inside = isinstance(each, (dict, list))
        found += leaves(each, (*path, key)) if inside else [(*path, key)]
    return found


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The declaration with the fingerprint of what it declares, where it still has one."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        shards = [[each["split"], each["bucket"], each["sha256"]] for each in values["shards"]]
        identity = [values["token_sets"], values["buckets"], shards]
        values["fingerprint"] = hashlib.sha256(canonical_json(identity)).hexdigest()
    return values


def changed_declaration(sound: bytes, random: Random) -> bytes:
    values = json.loads(sound)
    for _ in range(random.integers(1, 3)):
        paths = leaves(values)
        path = paths[random.integers(0, len(paths))]
        holder = values
        for key in path[:-1]:
            holder = holder[key]
        if random.integers(0, 6) == 0:
            del holder[path[-1]]
        else:
            value = HOSTILE_VALUES[random.integers(0, len(HOSTILE_VALUES))]
            holder[path[-1]] = copy.deepcopy(value)
    text = json.dumps(sealed(values))
    return text.encode("utf-8", "surrogatepass")


def changed_index(sound: bytes, random: Random) -> bytes:
    """The index with a sidecar whose places or samples lie, under a right crc32."""
    data = bytearray(sound)
    starts = [at for at in range(0, len(data) - 8, 8) if data[at : at + 8] == MAGIC]
    which = int(random.integers(0, len(starts)))
    start, end = starts[which], [*starts[1:], len(data)][which]
    for place in random.integers(start + 16, end, 2):
        data[place] = random.choice([0, 1, 2, 255, 128])
    data[start + 12 : start + 16] = struct.pack("<I", zlib.crc32(data[start + 16 : end]))
    return bytes(data)


def changed_bytes(sound: bytes, random: Random) -> bytes:
    data = bytearray(sound)
    for place in random.integers(0, len(data), 4):
        data[place] ^= 1 << random.integers(0, 8)
    return bytes(data) if random.integers(0, 3) else bytes(data[: random.integers(0, len(data))])


CHANGES: list[tuple[str, Callable[[bytes, Random], bytes], int]] = [
    ("shards.json", changed_declaration, 900),
    ("shards.json", changed_bytes, 200),
    ("index.bin", changed_index, 500),
    ("index.bin", changed_bytes, 200),
    ("parts/train-t9-000000.tar", changed_bytes, 200),
    ("parts/train-t9-000001.tar", mutated, 300),
]


@pytest.mark.parametrize("share", [0.2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "change", "count"), CHANGES)
def test_a_damaged_dataset_is_read_right_or_is_a_typed_error(
    name: str, change: Callable[[bytes, Random], bytes], count: int, share: float, tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "data")
    read_everything(root)
    path, random = root / name, np.random.default_rng(1)
    sound, refused = path.read_bytes(), []
    count = int(share * count)
    for _ in range(count):
        path.write_bytes(change(sound, random))
        with only_reads_in(root):
            try:
                read_everything(root)
            except (ShardError, UserError) as error:
                refused.append(str(error))
    assert len(refused) > count // 3
    assert max(map(len, refused)) < 2000


def test_a_declaration_of_nesting_or_of_nothing_is_refused() -> None:
    for text in (
        "[" * 100_000,
        '{"a":' * 50_000,
        "",
        "null",
        "3",
        '{"format_version": 2}',
        b"\xff",
    ):
        with pytest.raises(ShardError, match=r"^here: not a valid shard list"):
            parse_declaration(text, "here")


def test_an_edited_declaration_is_told_by_its_fingerprint(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "data") / "shards.json"
    values = json.loads(path.read_text())
    del values["shards"][0]
    with pytest.raises(ShardError, match="its fingerprint is not that of what it declares"):
        parse_declaration(json.dumps(values), "here")


def test_the_shards_of_another_dataset_are_refused(tmp_path: Path) -> None:
    own, other = make_dataset(tmp_path / "own"), make_dataset(tmp_path / "other", seed=1)
    index = (own / "index.bin").read_bytes()
    (own / "index.bin").write_bytes((other / "index.bin").read_bytes())
    with pytest.raises(ShardError, match="is damaged"):
        read_everything(own)
    (own / "index.bin").write_bytes(index)
    for path in (other / "parts").glob("*.tar"):
        (own / "parts" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ShardError, match="is damaged"):
        read_everything(own)


def test_metadata_that_is_no_object_is_named(tmp_path: Path) -> None:
    bombs = [b"[" * 100_000, b"[]", b"3", b'{"a":', b'{"a":1},{"b":2}', b"{" * 9, b'{"a":NaN']
    for number, bomb in enumerate(bombs):
        root = make_dataset(tmp_path / str(number))
        index, entry = (root / "index.bin").read_bytes(), first_shard(root)
        sidecar = parse_sidecar(index[: entry["index_bytes"]], "index")
        places = sidecar.places.copy()
        offset = int(places["offset"][1, 2])
        tar = (root / entry["path"]).read_bytes()
        tar = tar[:offset] + bomb + tar[offset + int(places["length"][1, 2]) :]
        places["length"][1, 2], places["crc32"][1, 2] = len(bomb), zlib.crc32(bomb)
        changed = pack_sidecar(sidecar.members, sidecar.samples, places, len(tar))
        values = json.loads((root / "shards.json").read_text())
        values["shards"][0]["size_bytes"] = len(tar)
        (root / entry["path"]).write_bytes(tar)
        (root / "index.bin").write_bytes(changed + index[entry["index_bytes"] :])
        (root / "shards.json").write_text(json.dumps(values))
        samples = open_dataset(root).samples("train")
        assert samples.metadata([0])[0]["number"] == 0
        with pytest.raises(ShardError, match="JSON"):
            samples.metadata([0, 1])


def first_shard(root: Path) -> dict[str, Any]:
    return json.loads((root / "shards.json").read_text())["shards"][0]


def test_a_poisoned_cache_of_stock_tars_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    tar = tmp_path / "stock" / "a.tar"
    tar.parent.mkdir()
    tar.write_bytes(sound_tars()[0])
    expected = open_dataset(tar).samples("train").gather([0, 1, 2])
    (cached,) = (tmp_path / "cache").rglob("*.idx")
    sound, random = cached.read_bytes(), np.random.default_rng(2)
    poisons = [b"", b"[" * 100_000, b"null\n", b'[{"arrays":[],"bytes":-1}]\n' + sound]
    poisons += [changed_bytes(sound, random) for _ in range(150)]
    for poison in poisons:
        cached.write_bytes(poison)
        with contextlib.suppress(ShardError, UserError):
            found = open_dataset(tar).samples("train").gather([0, 1, 2])
            assert np.array_equal(found, expected)
    assert os.listdir(tar.parent) == ["a.tar"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "null",
        '{"version": 2, "rows": {}}',
        '{"version": true, "rows": {}}',
        '{"version": 1}',
        '{"version": 1, "rows": []}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": 3}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [-1]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [1.5]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [true]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": ["1"]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [1e999]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [[0]]}}',
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [' + "9" * 400 + "]}}",
        '{"version": 1, "rows": {"parts/train-t9-000000.tar": [3]}}',
    ],
)
def test_a_damaged_tombstone_never_brings_a_sample_back(text: str, tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data")
    (root / "_removed").mkdir()
    path = root / "_removed" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    path.write_text(text)
    with pytest.raises(ShardError):
        open_dataset(root).samples("train")


def test_an_edited_tombstone_is_told_by_its_name(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data")
    text = '{"rows":{"parts/train-t9-000000.tar":[2]},"source_ids":["s"],"version":1}\n'
    path = root / "_removed" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    path.parent.mkdir()
    path.write_text(text)
    assert len(open_dataset(root).samples("train")) == 6
    path.write_text(text.replace("[2]", "[]"))
    with pytest.raises(ShardError, match="its name is not the hash"):
        open_dataset(root)
