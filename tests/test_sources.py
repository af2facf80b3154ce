"""Sources: what folders, files and globs name, sorted, once each; plain words for what is wrong."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.decode.decoder import DecodeLimits
from pipeline.sources.content import content_id
from pipeline.sources.listing import list_sources
from tokenizer.settings import UserError


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    for name in ("b/two.MP4", "a/one.mkv", "a/deep/three.webm", "still.JPG", ".hidden/no.mp4"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    for name in ("one.txt", "notes.md", ".secret.mp4"):
        (folder / "a" / name).write_text("not a source")
    return folder


def test_a_folder_is_listed_below_sorted_and_without_hidden_files(collection: Path) -> None:
    files = list_sources([str(collection)])
    assert [file.uri for file in files] == [
        "a/deep/three.webm",
        "a/one.mkv",
        "b/two.MP4",
        "still.JPG",
    ]
    assert [file.kind for file in files] == ["video", "video", "video", "image"]
    assert [file.size_bytes for file in files] == [len(file.uri) for file in files]
    assert all(file.location == str(collection / file.uri) for file in files)


def test_files_and_globs_name_sources_too_and_each_file_counts_once(collection: Path) -> None:
    patterns = [
        str(collection / "*" / "*.mkv"),
        str(collection / "**" / "*.MP4"),
        str(collection / "still.JPG"),
        str(collection / "a" / "one.mkv"),
    ]
    names = [Path(file.location).name for file in list_sources(patterns)]
    assert sorted(names) == ["one.mkv", "still.JPG", "two.MP4"]
    assert len(list_sources([str(collection), str(collection / "a")])) == 4


def test_a_glob_may_name_folders(collection: Path) -> None:
    names = {Path(file.location).name for file in list_sources([str(collection / "[ab]")])}
    assert names == {"one.mkv", "three.webm", "two.MP4"}


def test_a_folder_whose_name_has_glob_marks_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "odd [1]"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"x")
    assert len(list_sources([str(folder)])) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing", "no such file or folder"),
        (lambda folder: folder / "a" / "notes.md", "not a video or an image"),
        (lambda folder: folder / "*.avi", "the pattern matches no"),
        (lambda folder: folder / "empty", "the folder holds no"),
    ],
)
def test_what_names_nothing_is_one_clear_line(collection: Path, make, said: str) -> None:
    (collection / "empty").mkdir()
    with pytest.raises(UserError, match=said) as caught:
        list_sources([str(make(collection))])
    assert "\n" not in str(caught.value)
    assert str(make(collection)) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_that_may_not_be_read_is_an_error_not_a_gap(collection: Path) -> None:
    (collection / "b").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be listed"):
            list_sources([str(collection)])
    finally:
        (collection / "b").chmod(0o755)


def test_a_dangling_link_is_left_out(collection: Path) -> None:
    (collection / "gone.mp4").symlink_to(collection / "nowhere.mp4")
    assert len(list_sources([str(collection)])) == 4


def test_the_content_is_the_identity(tmp_path: Path) -> None:
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    one.write_bytes(b"same" * 100_000)
    two.write_bytes(b"same" * 100_000)
    limits = DecodeLimits()
    assert content_id(str(one), limits) == content_id(str(two), limits)
    assert content_id(str(one), limits) == hashlib.sha256(b"same" * 100_000).hexdigest()
    two.write_bytes(b"other")
    assert content_id(str(one), limits) != content_id(str(two), limits)
