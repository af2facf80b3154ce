"""Tars as sources: members with their sidecars, read in place; hostile ones are one line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.captions import read_sidecars
from pipeline.decode.decoder import DecodeLimits
from pipeline.sources.content import content_id
from pipeline.sources.file import SourceFile
from pipeline.sources.listing import list_sources
from pipeline.sources.location import member_of, pieces_of
from pipeline.sources.looking import Known, look_into
from tests.audit import only_reads_in
from tests.test_hostile_tars import CASES, END, member, mutated, pax
from tests.web import serving
from tokenizer.settings import UserError

FILES = {
    "x/000.mp4": b"film" * 1000,
    "x/000.json": b'{"license": "CC0"}',
    "x/000.txt": b"a cat",
    "x/000.cls": b"7",
    "001.jpg": b"picture",
    "001.txt": b"a dog",
    ".hidden.mp4": b"no",
    "x/._000.mp4": b"no",
    "notes.md": b"no",
    "./dot.webm": b"dot",
}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def looked_into(sources: list[str], known: list[SourceFile] = []) -> list[SourceFile]:  # noqa: B006
    """What is in the sources, by uri; UserError when nothing is sound, as a plan says it."""
    before = Known(known)
    groups = [look_into(file, DecodeLimits(), before) for file in list_sources(sources)]
    files = [file for group in groups for file in group]
    if all(file.problem for file in files):
        raise UserError(files[0].problem if files else "nothing")
    return sorted(files, key=lambda file: file.uri)


def test_members_are_files_in_place_with_their_sidecars(tmp_path: Path) -> None:
    files = looked_into([str(write_tar(tmp_path / "a.tar", FILES))])
    assert [(file.uri, file.kind) for file in files] == [
        ("001.jpg", "image"),
        ("dot.webm", "video"),
        ("x/000.mp4", "video"),
    ]
    contents = [b"".join(pieces_of(file.location, 1 << 20, 60.0)) for file in files]
    assert contents == [FILES["001.jpg"], FILES["./dot.webm"], FILES["x/000.mp4"]]
    assert [file.size_bytes for file in files] == [len(each) for each in contents]
    captions = [read_sidecars(file.sidecars).for_span(0, 1)[:2] for file in files]
    assert captions == [("a dog", None), (None, None), ("a cat", "7")]


def test_a_tar_behind_a_url_is_identified_in_one_pass(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", FILES)
    here = looked_into([str(tar)])
    with serving(tmp_path) as web:
        there = looked_into([f"{web.url}/a.tar"])
        assert [asked for _, asked in web.asked] == ["bytes=0-0", ""]
        again = looked_into([f"{web.url}/a.tar"], known=there)
        assert again == there
        assert [asked for _, asked in web.asked[2:]] == ["bytes=0-0"]
    assert [file.uri for file in there] == [file.uri for file in here]
    assert [file.source_id for file in there] == [
        content_id(file.location, DecodeLimits()) for file in here
    ]


def test_a_tar_that_changed_is_listed_anew(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", FILES)
    before = looked_into([str(tar)])
    write_tar(tar, FILES | {"new.mp4": b"new"})
    after = looked_into([str(tar)], known=before)
    assert {file.uri for file in after} - {file.uri for file in before} == {"new.mp4"}


def test_long_names_are_names_too(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "e" * 90 + ".mp4"
    (file,) = looked_into([str(write_tar(tmp_path / "a.tar", {name: b"x"}))])
    assert file.uri == name
    (tmp_path / "b.tar").write_bytes(pax((b"path", "é.mp4".encode())) + member(b"a", b"y") + END)
    (file,) = looked_into([str(tmp_path / "b.tar")])
    assert file.uri == "é.mp4"


def test_one_unsound_tar_among_others_is_an_error_of_its_own(tmp_path: Path) -> None:
    write_tar(tmp_path / "00.tar", FILES)
    whole = write_tar(tmp_path / "01.tar", FILES).read_bytes()
    (tmp_path / "01.tar").write_bytes(whole[:1500])
    files = looked_into([f"{tmp_path}/*.tar"])
    (bad,) = [file for file in files if file.problem]
    assert (bad.uri, bad.error, len(files)) == ("01.tar", "open", 4)
    assert "cut short" in bad.problem
    with pytest.raises(UserError, match=r"01\.tar at byte .*cut short"):
        looked_into([f"{tmp_path}/01.tar"])


def test_a_tar_without_media_and_a_compressed_one_are_one_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"notes.md": b"x"})
    with pytest.raises(UserError, match="nothing"):
        looked_into([str(tmp_path / "a.tar")])
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + bytes(4000))
    with pytest.raises(UserError, match="gunzip it first"):
        looked_into([str(tmp_path / "b.tar")])


@pytest.mark.parametrize("name", CASES)
def test_hostile_tars_are_one_line_or_listed(name: str, tmp_path: Path) -> None:
    content, _ = CASES[name]
    (tmp_path / "a.tar").write_bytes(content)
    problem = ""
    with only_reads_in(tmp_path):
        try:
            looked_into([str(tmp_path / "a.tar")])
        except UserError as error:
            problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("num_tars", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_tars_never_raise_anything_else(tmp_path: Path, num_tars: int) -> None:
    random = np.random.default_rng(5)
    sound = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    num_listed = 0
    for _ in range(num_tars):
        (tmp_path / "a.tar").write_bytes(mutated(sound, random))
        try:
            files = looked_into([str(tmp_path / "a.tar")])
        except UserError:
            continue
        for file in files:
            place = member_of(file.location)
            assert place is not None
            assert sum(map(len, pieces_of(file.location, 1 << 30, 60.0))) == place.size_bytes
        num_listed += 1
    assert num_listed < num_tars
