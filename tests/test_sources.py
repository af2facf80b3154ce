"""Sources: what patterns name, sorted, once each; plain words for what is wrong."""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.decode.decoder import DecodeLimits
from pipeline.sources import patience
from pipeline.sources.braces import expand_braces
from pipeline.sources.content import content_id
from pipeline.sources.listing import list_sources
from tests.web import serving
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


def test_braces_stand_for_names_in_order() -> None:
    assert expand_braces("a/{08..11}.tar") == [f"a/{n}.tar" for n in ("08", "09", "10", "11")]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain") == ["plain"]
    for pattern, said in [
        ("{1..0}", "backwards"),
        ("{0..9999999999}", "more than 1,000,000"),
        ("{0..999}{0..1000}", "more than 1,000,000"),
        ("{abc}", "must be a range"),
        ("{0..", "do not match"),
        ("{{1,2}}", "do not match"),
        ("{" + "9" * 30 + "..1}", "must be a range"),
    ]:
        with pytest.raises(UserError, match=said):
            expand_braces(pattern)


def test_every_name_of_a_range_must_be_there(collection: Path) -> None:
    (collection / "0.mp4").write_bytes(b"0")
    (collection / "{1..2}.mp4").write_bytes(b"odd")
    assert len(list_sources([f"{collection}/{{0..0}}.mp4"])) == 1
    assert len(list_sources([f"{collection}/{{1..2}}.mp4"])) == 1  # a file that is called so
    with pytest.raises(UserError, match=r"/1\.mp4: no such file"):
        list_sources([f"{collection}/{{0..3}}.mp4"])


def test_tars_and_manifests_are_those_that_a_pattern_names(collection: Path) -> None:
    (collection / "all.csv").write_text("path\nstill.JPG\n")
    assert len(list_sources([str(collection)])) == 4
    assert len(list_sources([f"{collection}/*"])) == 4
    assert [file.uri for file in list_sources([f"{collection}/*.csv"])] == ["still.JPG"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("nosuch://lab/films", "Protocol not known: nosuch"),
        ("simplecache::memory://a/b.mp4", "chain"),
        ("memory://nowhere/films", "nowhere/films.*not a video or an image"),
        ("memory://nowhere/a.mp4", "no such file"),
        ("memory://nowhere/a.tar", "no such file"),
        ("memory://nowhere/a.csv", "no such file"),
        ("memory://nowhere/*.mp4", "matches no videos"),
        ("memory://nowhere/*.tar", "matches no file"),
        ("http://127.0.0.1:9/a.mp4", "127.0.0.1:9.*onnect"),
        ("http://127.0.0.1:9/films", "127.0.0.1:9.*onnect"),
        ("http://[bad/films/a.mp4", "not a URL"),
    ],
)
def test_a_url_that_names_nothing_is_one_clear_line(
    pattern: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.0)
    with pytest.raises(UserError, match=said) as caught:
        list_sources([pattern])
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_one_clear_line(s3: str) -> None:
    for pattern in ("s3://nobucket/films", "s3://nobucket/a.mp4", f"{s3}/none/a.tar"):
        with pytest.raises(UserError, match=pattern) as caught:
            list_sources([pattern])
        assert "\n" not in str(caught.value)


def test_a_page_that_links_to_itself_and_elsewhere_is_listed_once(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.mp4").write_bytes(b"a")
    links = ["./", "../", "sub/", "sub/../sub/", "http://127.0.0.1:9/x.mp4", "?C=M", "/etc/x.mp4"]
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    (folder / "index.html").write_text(page)
    with serving(tmp_path) as web:
        (file,) = list_sources([f"{web.url}/films/"])
    assert (file.uri, file.size_bytes) == ("sub/a b.mp4", 1)


class _Endless(SimpleHTTPRequestHandler):
    """Every page links to a deeper one."""

    def do_GET(self) -> None:
        page = b'<a href="deeper/">x</a>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *words: object) -> None:
        pass


def test_pages_without_end_are_left() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with pytest.raises(UserError, match="links without end; give a manifest"):
            list_sources([f"http://127.0.0.1:{server.server_port}/films"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_glob_over_pages_of_links_matches_files(tmp_path: Path) -> None:
    for name in ("a/x-1.mp4", "a/x-2.mp4", "b/x-1.mp4", "b/y.mp4", "c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with serving(tmp_path) as web:
        files = list_sources([f"{web.url}/*/x-*.mp4"])
        assert [file.uri for file in files] == ["a/x-1.mp4", "a/x-2.mp4", "b/x-1.mp4"]
        assert all(file.size_bytes == 9 for file in files)
        with pytest.raises(UserError, match="matches no videos"):
            list_sources([f"{web.url}/z*.mp4"])


def test_a_page_without_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.web._MAX_PAGE_BYTES", 1 << 20)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "index.html").write_bytes(b"<a " * (1 << 20))
    with serving(tmp_path) as web, pytest.raises(UserError, match="a page of more than"):
        list_sources([f"{web.url}/films"])
