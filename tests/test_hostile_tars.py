"""Tars from anywhere: thousands of damaged and hostile ones, and only typed errors.

Every case runs under an audit hook: nothing outside the test's own folder may be opened, nothing
unpickled, executed or started.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.inspection.members import open_shard
from pipeline.shards.format import (
    ShardError,
    canonical_json,
)
from pipeline.shards.tarindex import index_tar
from tests.audit import only_reads_in

Random = np.random.Generator


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


@pytest.mark.parametrize("num_tars", [480, pytest.param(2400, marks=pytest.mark.slow)])
def test_damaged_tars_never_raise_anything_else(tmp_path: Path, num_tars: int) -> None:
    tars, random = sound_tars(), np.random.default_rng(0)
    path = tmp_path / "shard.tar"
    read, refused = 0, []
    for number in range(num_tars):
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
    assert read > num_tars / 24
    assert len(refused) > num_tars / 2.4
