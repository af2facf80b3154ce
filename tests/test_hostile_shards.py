"""Shards from anywhere: thousands of damaged and hostile ones, and only typed errors.

Every case runs under an audit hook: nothing outside the test's own folder may be opened, nothing
unpickled, executed or started.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.inspection.members import open_shard
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
from pipeline.shards.tarindex import index_tar
from tokenizer.scales import single_grid
from tokenizer.settings import UserError

Random = np.random.Generator
_events: list[str] | None = None
_WATCHED = ("os.", "subprocess.", "pickle.", "exec", "socket.", "shutil.", "ctypes.")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None:
        return
    if event == "open":
        _events.append(f"open {os.fspath(arguments[0])} {arguments[1]}")
    elif event.startswith(_WATCHED) and event not in ("os.listdir", "os.scandir"):
        _events.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def only_reads_in(folder: Path) -> Iterator[None]:
    """Fails when what runs inside does anything but read files of `folder`."""
    global _events
    _events = []
    try:
        yield
    finally:
        seen, _events = _events, None
    allowed = re.compile(rf"open {re.escape(str(folder))}[/\w.-]* rb?")
    assert not [each for each in seen if not allowed.fullmatch(each)]


def header(
    name: bytes, size: int | bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000", **more: bytes
) -> bytes:
    """A tar header whose checksum is right, whatever else is wrong."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")[:100]
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157:257] = more.get("link", b"").ljust(100, b"\0")
    block[257:265] = magic
    prefix = more.get("prefix", b"")
    block[345 : 345 + len(prefix)] = prefix
    return with_checksum(block)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, payload: bytes, **more: Any) -> bytes:
    return header(name, len(payload), **more) + payload + bytes(-len(payload) % 512)


def long_name(name: bytes) -> bytes:
    return member(b"././@LongLink", name + b"\0", kind=b"L")


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    lines = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        lines += b"%d %s=%s\n" % (length, key, value)
    return member(b"pax", lines, kind=kind)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_claims(text: str, payload: bytes = b"12345678") -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + payload


def array_claims(shape: str = "(4,)", descr: str = "'<u2'") -> bytes:
    return npy_claims(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


END = bytes(1024)
GOOD = member(b"a.npy", npy(np.arange(4, dtype=np.uint16)))
NO_NUMBER = "not a plain number|not a sound"
CASES: dict[str, tuple[bytes, str]] = {
    "a path outside": (member(b"../../a.json", b"{}") + END, "leaves the folder"),
    "a path outside in the middle": (member(b"x/../../a.json", b"{}") + END, "leaves the folder"),
    "an absolute path": (member(b"/etc/a.json", b"{}") + END, "leaves the folder"),
    "a path outside in the prefix": (
        member(b"a.json", b"{}", prefix=b"../..") + END,
        "leaves the folder",
    ),
    "a path of another system": (member(b"..\\a.json", b"{}") + END, "leaves the folder"),
    "a long name outside": (
        long_name(b"x/" * 60 + b"../a.json") + member(b"a.json", b"{}") + END,
        "leaves the folder",
    ),
    "an extended name outside": (
        pax((b"path", b"../a.json")) + member(b"a.json", b"{}") + END,
        "leaves the folder",
    ),
    "a name with a nul": (pax((b"path", b"a\0.json")) + GOOD + END, "no name for a member"),
    "a name with a line": (member(b"a\nb.json", b"{}") + END, "no name for a member"),
    "a terminal escape": (member(b"a\x1b[2J.json", b"{}") + END, "no name for a member"),
    "a name that turns": (member("a\u202eb.json".encode(), b"{}") + END, "no name for a member"),
    "a name that is no text": (member(b"a\xff\xfe.json", b"{}") + END, "is not UTF-8"),
    "an empty name": (member(b"", b"{}") + END, "no name for a member"),
    "a huge name": (long_name(b"a" * 5000 + b".json") + GOOD + END, "a name of 5006 bytes"),
    "a long name that ends early": (
        member(b"././@LongLink", b"b.json", kind=b"L") + GOOD + END,
        "does not end where it says",
    ),
    "a long name that ends twice": (long_name(b"b.json\0c") + GOOD + END, "does not end where"),
    "a file that may be a folder": (
        long_name(b"x/b.json") + member(b"x/", b"{}", kind=b"\0") + END,
        "other readers take for a folder",
    ),
    "two long names": (long_name(b"b.json") + long_name(b"c.json") + GOOD + END, "two long names"),
    "a long and an extended name": (
        long_name(b"b.json") + pax((b"path", b"c.json")) + GOOD + END,
        "two long names",
    ),
    "a long name of nothing": (GOOD + long_name(b"b.json") + END, "a long name without a member"),
    "one name for all": (pax((b"path", b"b.json"), kind=b"g") + GOOD + END, "one name for all"),
    "a size that is changed": (pax((b"size", b"1")) + GOOD + END, "changes a member's size"),
    "a sparse map": (pax((b"GNU.sparse.major", b"1")) + GOOD + END, "changes a member's size"),
    "an extended link": (pax((b"linkpath", b"/etc/passwd")) + GOOD + END, "changes a member's"),
    "extended nonsense": (member(b"p", b"999999 x=", kind=b"x") + GOOD + END, "is damaged"),
    "an extended record that is short": (member(b"p", b"5 a=bcd\n", kind=b"x") + END, "damaged"),
    "a huge extended header": (header(b"p", 1 << 20, kind=b"x") + bytes(1 << 20), "of 1048576 b"),
    "a symbolic link": (header(b"a.npy", 0, b"2", link=b"/etc/passwd") + END, "not a plain file"),
    "a hard link": (header(b"a.npy", 0, b"1", link=b"b.npy") + END, "not a plain file"),
    "a character device": (header(b"a.npy", 0, b"3") + END, "not a plain file .a device"),
    "a block device": (header(b"a.npy", 0, b"4") + END, "not a plain file"),
    "a pipe": (header(b"a.npy", 0, b"6") + END, "not a plain file .a pipe"),
    "a sparse file": (header(b"a.npy", 0, b"S") + END, "not a plain file .a sparse"),
    "a kind of its own": (header(b"a.npy", 0, b"Z") + END, "unknown kind b'Z'"),
    "a folder with bytes": (header(b"a", 512, b"5") + bytes(512) + END, "a folder with 512 bytes"),
    "a size behind the end": (header(b"a.npy", 8**10) + END, "ends behind the end"),
    "a huge size": (header(b"a.npy", 8**11 - 1) + END, "a member of 8589934591 bytes"),
    "a size below zero": (header(b"a.npy", b"-0000001000\0") + END, "no header here"),
    "a size in base 256": (header(b"a.npy", b"\x80" + bytes(10) + b"\x01") + END, "no header here"),
    "a size with underscores": (header(b"a.npy", b"0000000_1_0\0") + END, "no header here"),
    "no size": (header(b"a.npy", b" " * 12) + END, "no header here"),
    "a wrong checksum": (b"b" + GOOD[1:] + END, "checksum is wrong"),
    "a wrong checksum of a name": (
        b"x" + long_name(b"b.npy")[1:] + GOOD + END,
        "checksum is wrong",
    ),
    "a prefix where there is none": (
        member(b"a.npy", b"", magic=b"ustar  \0", prefix=b"../..") + END,
        "a name in two parts",
    ),
    "a time that is no number": (
        with_checksum(bytearray(GOOD[:136] + b"tomorrow    " + GOOD[148:512])) + GOOD[512:] + END,
        "numbers are none",
    ),
    "an unknown kind of tar": (member(b"a.npy", b"", magic=b"newtar00") + END, "no header here"),
    "no end": (GOOD, "no end mark"),
    "a second tar behind it": (GOOD + END + GOOD + END, "data behind the end mark"),
    "half of a header": (GOOD + header(b"b.npy", 0)[:300], "no end mark|no header"),
    "nothing but an end": (END, "an empty tar"),
    "only folders": (header(b"a/", 0, b"5") + END, "an empty tar"),
    "only hidden files": (member(b".a.json", b"{}") + END, "an empty tar"),
    "a compressed tar": (b"\x1f\x8b\x08" + bytes(2000), "it is compressed"),
    "random bytes": (np.random.default_rng(0).bytes(4096), "no header here"),
    "a member twice": (GOOD + GOOD + END, "is in it twice"),
    "a member twice in other letters": (GOOD + member(b"a.NPY", b"") + END, "is in it twice"),
    "scattered members": (
        GOOD + member(b"b.json", b"{}") + member(b"a.json", b"{}") + END,
        "not beside each other",
    ),
    "no extension behind the dot": (member(b"a.", b"") + END, "not named KEY.EXTENSION"),
    "a reserved extension": (member(b"a.__key__", b"x") + END, "not named KEY.EXTENSION"),
    "a huge extension": (long_name(b"a." + b"x" * 500) + GOOD + END, "not named KEY.EXTENSION"),
    "too many extensions": (
        b"".join(member(b"%d.x%d" % (n, n), b"") for n in range(70)) + END,
        "more than 64 different extensions",
    ),
    "a pickled array": (member(b"a.npy", npy(np.array([{}], dtype=object))) + END, NO_NUMBER),
    "an array of records": (member(b"a.npy", npy(np.zeros(3, "u1,u2"))) + END, NO_NUMBER),
    "an array of texts": (member(b"a.npy", npy(np.array(["text"]))) + END, NO_NUMBER),
    "an array of dates": (member(b"a.npy", npy(np.zeros(3, "M8[s]"))) + END, NO_NUMBER),
    "a dtype that is code": (
        member(b"a.npy", array_claims(descr="__import__('os').system('id')")) + END,
        NO_NUMBER,
    ),
    "a dtype that is huge": (member(b"a.npy", array_claims(descr="'<u99999'")) + END, NO_NUMBER),
    "a dtype that is none": (member(b"a.npy", array_claims(descr="'<f1'")) + END, NO_NUMBER),
    "a huge shape": (member(b"a.npy", array_claims("(1000000000000000,)")) + END, "makes 2000000"),
    "an endless shape": (member(b"a.npy", array_claims(f"({'9' * 999},)")) + END, "not possible"),
    "a shape of many axes": (
        member(b"a.npy", array_claims(f"({'1,' * 99})")) + END,
        "not possible",
    ),
    "a negative shape": (member(b"a.npy", array_claims("(-4, -1)")) + END, "not a sound"),
    "a shape that is no tuple": (member(b"a.npy", array_claims("[4]")) + END, "not a sound"),
    "a header that is code": (member(b"a.npy", npy_claims("exit()")) + END, "not a sound"),
    "a header of brackets": (member(b"a.npy", npy_claims("(" * 4000)) + END, "not a sound"),
    "a header twice": (
        member(b"a.npy", npy_claims("{'shape':(4,),'shape':(4,),'descr':'<u2'}")) + END,
        "not a sound",
    ),
    "a header behind the end": (
        member(b"a.npy", b"\x93NUMPY\x01\0\xff\x0f{}") + END,
        "not a sound",
    ),
    "a header that is enormous": (
        member(b"a.npy", b"\x93NUMPY\x02\0" + b"\xff" * 8) + END,
        "a header of 4294967307 bytes",
    ),
    "a version of .npy to come": (member(b"a.npy", b"\x93NUMPY\x09\0" + bytes(9)) + END, "version"),
    "no array": (member(b"a.npy", b"{}") + END, "no array begins here"),
    "an empty array file": (member(b"a.npy", b"") + END, "no array begins here"),
    "a longer array": (member(b"a.npy", array_claims() + b"x") + END, "makes"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_tar_is_a_typed_error_with_file_and_byte(name: str, tmp_path: Path) -> None:
    data, message = CASES[name]
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=message) as error, only_reads_in(tmp_path):
        index_tar(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert "at byte" in text or "an empty tar" in text
    assert os.listdir(tmp_path) == ["shard.tar"]


def test_the_parts_of_the_cases_are_sound_by_themselves(tmp_path: Path) -> None:
    """Else a case could be refused for what it does not test."""
    path = tmp_path / "shard.tar"
    path.write_bytes(
        GOOD
        + header(b"folder/", 0, b"5")
        + long_name(b"deep/" * 30 + b"b.npy")
        + member(b"cut", array_claims())
        + pax((b"path", b"c.npy"), (b"mtime", b"1.5"))
        + member(b"cut", array_claims("(2, 2)"))
        + pax((b"comment", b"of all"), kind=b"g")
        + member(b"d.npy", array_claims("(1, 4)"), prefix=b"e/f")
        + END
    )
    assert index_tar(path).keys == ["a", "deep/" * 30 + "b", "c", "e/f/d"]


def sound_tars() -> list[bytes]:
    """The same samples in each dialect of tar, with long names where it has them."""
    found = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=dialect) as tar:
            for number in range(5):
                key = f"{'long/' * 25 if number == 2 and dialect else ''}{number:04d}"
                for extension, payload in (
                    ("codes.npy", npy(np.arange(9, dtype=np.uint16))),
                    ("json", canonical_json({"number": number, "caption": "a" * 40})),
                ):
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size, entry.mtime = len(payload), 0
                    tar.addfile(entry, io.BytesIO(payload))
        data = stream.getvalue().rstrip(b"\0")
        found.append(data + bytes(-len(data) % 512) + END)
    return found


FIELDS = {
    "name": (0, (b"../x.json", b"/x.json", b"0001.json", b"a", b"\xff.json", b".x.y", b"__x__")),
    "size": (
        124,
        (b"77777777777\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"0" * 12, b"00000000001 "),
    ),
    "kind": (156, tuple(bytes([value]) for value in b"\x001234567LKxgSDZ")),
    "magic": (257, (b"ustar  \0", bytes(8), b"garbage!")),
    "prefix": (345, (b"../..", b"/", b"x" * 155)),
}


def mutated(sound: bytes, random: Random) -> bytes:
    """One to three changes of a tar: bits, bytes, cuts, moved blocks, fields with right sums."""
    data = bytearray(sound)
    for _ in range(random.integers(1, 4)):
        blocks = len(data) // 512
        if blocks < 2:
            break
        block = 512 * int(random.integers(0, blocks))
        choice = random.integers(0, 7)
        if choice == 0:
            data[random.integers(0, len(data))] ^= 1 << random.integers(0, 8)
        elif choice == 1:
            start = int(random.integers(0, len(data)))
            data[start : start + 9] = random.bytes(min(9, len(data) - start))
        elif choice == 2:
            del data[random.integers(0, len(data)) :]
        elif choice == 3:
            data[block:block] = data[512 * int(random.integers(0, blocks)) :][:1536]
        elif choice == 4:
            del data[block : block + 512 * int(random.integers(1, 4))]
        else:
            start, values = FIELDS[list(FIELDS)[random.integers(0, len(FIELDS))]]
            heads = [at for at in range(0, len(data) - 511, 512) if b"ustar" in data[at:][257:265]]
            if heads:
                at = heads[random.integers(0, len(heads))]
                value = values[random.integers(0, len(values))]
                changed = bytearray(data[at : at + 512])
                changed[start : start + len(value)] = value
                data[at : at + 512] = with_checksum(changed)
    return bytes(data)


def test_damaged_tars_never_raise_anything_else(tmp_path: Path) -> None:
    tars, random = sound_tars(), np.random.default_rng(0)
    path = tmp_path / "shard.tar"
    read, refused = 0, []
    for number in range(2400):
        data = mutated(tars[number % 3], random)
        path.write_bytes(data)
        with only_reads_in(tmp_path):
            try:
                index = index_tar(path)
                shard = open_shard(path)
                for key in shard.keys:
                    shard.read(key)
            except ShardError as error:
                refused.append(str(error))
                continue
        read += 1
        with tarfile.open(path, "r:") as tar:  # who unpacks it sees what we saw
            theirs = {(entry.offset_data, entry.size) for entry in tar if entry.isreg()}
            names = {entry.name for entry in tar.getmembers()}
        used = index.sidecar.places[index.sidecar.places["offset"] > 0]
        assert {(offset, size) for offset, size, _ in used.tolist()} <= theirs
        assert all(any(name.startswith(f"{key}.") for name in names) for key in index.keys)
        places = index.sidecar.places
        assert int((places["offset"] + places["length"]).max()) <= len(data)
        assert not any(".." in key.split("/") or key.startswith("/") for key in index.keys)
    assert all(text.startswith(str(path)) for text in refused)
    assert read > 100
    assert len(refused) > 1000


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


@pytest.mark.parametrize(("name", "change", "count"), CHANGES)
def test_a_damaged_dataset_is_read_right_or_is_a_typed_error(
    name: str, change: Callable[[bytes, Random], bytes], count: int, tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "data")
    read_everything(root)
    path, random = root / name, np.random.default_rng(1)
    sound, refused = path.read_bytes(), []
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
