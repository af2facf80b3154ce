"""Locations: files on disks, behind URLs and in tars give the same bytes, and leave nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.decode.decoder import DecodeLimits
from pipeline.decode.errors import DecodeError
from pipeline.sources import patience
from pipeline.sources.content import content_id
from pipeline.sources.location import (
    Member,
    ending_of,
    facts_of,
    is_local_file,
    is_url,
    member_of,
    pieces_of,
)
from pipeline.sources.media import open_media
from pipeline.sources.remote import PIECE_BYTES
from pipeline.sources.urls import shown
from tests.web import Web, serving

CONTENT = bytes(range(256)) * 40_000  # 10 MB: more than one piece
ID = hashlib.sha256(CONTENT).hexdigest()
LIMITS = DecodeLimits()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.mp4").write_bytes(CONTENT)
    with serving(tmp_path / "web") as web:
        yield web


def read(location: str, max_bytes: int = 1 << 40, seconds: float = 60.0) -> bytes:
    return b"".join(pieces_of(location, max_bytes, seconds))


def test_a_location_says_what_it_is() -> None:
    member = Member("s3://lab/0.tar", 512, 8000, ".mp4")
    assert member.location == "tar+512+8000.mp4:s3://lab/0.tar"
    assert member_of(member.location) == member
    assert member_of("/films/tar+1+2:x.mp4") is None
    assert [is_local_file(each) for each in ("/a/b.mp4", "s3://a/b.mp4", member.location)] == [
        *(True, False, False)
    ]
    assert not is_url("/odd/s3://name.mp4")
    assert shown("https://me:secret@host/a.mp4?key=1") == "https://host/a.mp4"
    endings = ["/a/B.MP4", "https://h/b.jpg?sig=a.b/c.d", "s3://lab/x.webm", member.location]
    assert [ending_of(each) for each in endings] == [".mp4", ".jpg", ".webm", ".mp4"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_all_kinds_give_the_same_bytes(tmp_path: Path, web: Web, knows_ranges: bool) -> None:
    web.knows_ranges = knows_ranges
    path, url = str(tmp_path / "web" / "a.mp4"), f"{web.url}/a.mp4"
    assert read(path) == read(url) == CONTENT
    for first, size in ((0, 10), (255, 9_000_000), (len(CONTENT) - 3, 3), (5, 0)):
        expected = CONTENT[first : first + size]
        assert read(Member(path, first, size).location) == expected
        assert read(Member(url, first, size).location) == expected
    assert facts_of(path).size_bytes == facts_of(url).size_bytes == len(CONTENT)
    assert content_id(url, LIMITS) == ID


def test_a_piece_is_never_large(web: Web) -> None:
    assert max(map(len, pieces_of(f"{web.url}/a.mp4", 1 << 40, 60.0))) <= PIECE_BYTES


def test_a_stamp_changes_with_the_file_wherever_it_lies(tmp_path: Path, web: Web) -> None:
    path = tmp_path / "web" / "a.mp4"
    locations = [str(path), f"{web.url}/a.mp4"]
    locations += [Member(each, 0, 9).location for each in locations]
    before = [facts_of(each).stamp for each in locations]
    assert all(before)
    assert [facts_of(each).stamp for each in locations] == before
    path.write_bytes(CONTENT[:-1])
    os.utime(path, (1e9, 1e9))
    after = [facts_of(each).stamp for each in locations]
    assert all(one != other for one, other in zip(before, after))


def test_what_a_network_does_for_a_moment_is_tried_again(web: Web) -> None:
    url = f"{web.url}/a.mp4"
    web.failures["/a.mp4"] = [503, 429]
    assert read(url) == CONTENT
    web.cut_after["/a.mp4"] = 3_000_000  # it goes on where it broke off
    web.asked.clear()
    assert read(url) == CONTENT
    (_, first), (_, second) = web.asked
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 3_000_000
    web.failures["/a.mp4"] = [500, 500]
    assert facts_of(url).size_bytes == len(CONTENT)


def test_a_cut_answer_is_read_to_its_end_from_a_server_without_ranges(web: Web) -> None:
    web.knows_ranges = False
    web.cut_after["/a.mp4"] = 3_000_000
    assert read(f"{web.url}/a.mp4") == CONTENT


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [(404, FileNotFoundError, 1), (403, OSError, 1), (500, OSError, 8)],
)
def test_what_stays_wrong_is_one_line(web: Web, status: int, kind: type, tries: int) -> None:
    web.failures["/a.mp4"] = [status] * 9
    with pytest.raises(kind) as caught:
        read(f"{web.url}/a.mp4?key=secret")
    assert len(web.asked) == tries
    assert "\n" not in str(caught.value)
    assert f"{web.url}/a.mp4" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_limits_hold_before_and_while_a_file_is_read(tmp_path: Path, web: Web) -> None:
    for location in (str(tmp_path / "web" / "a.mp4"), f"{web.url}/a.mp4"):
        for each in (location, Member(location, 0, 5_000_000).location):
            with pytest.raises(OSError, match="more than 1000"):
                read(each, max_bytes=1000)
    with pytest.raises(TimeoutError, match="longer than 0 s"):
        read(f"{web.url}/a.mp4", seconds=0.0)


def test_a_device_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for location in ("/dev/zero", str(tmp_path), str(tmp_path / "pipe.mp4")):
        with pytest.raises(OSError, match="not a plain file"):
            read(location)
    with pytest.raises(OSError, match="null"):
        read("/a\0b.mp4")


def test_media_are_paths_wherever_they_lie(tmp_path: Path, web: Web) -> None:
    path, url = str(tmp_path / "web" / "a.mp4"), f"{web.url}/a.mp4"
    with open_media(path, LIMITS, ID) as media:
        assert media == Path(path)
    part = hashlib.sha256(CONTENT[100:300]).hexdigest()
    for location, source_id in [
        (url, ID),
        (Member(url, 100, 200).location, part),
        (Member(path, 100, 200).location, part),
    ]:
        with open_media(location, LIMITS, source_id) as media:
            assert hashlib.sha256(media.read_bytes()).hexdigest() == source_id


def test_what_is_decoded_in_pieces_is_fetched_once(web: Web) -> None:
    limits = DecodeLimits()
    for _ in range(3):
        with open_media(f"{web.url}/a.mp4", limits, ID) as outer:
            member = Member(f"{web.url}/a.mp4", 0, 5).location
            assert outer.stat().st_size == len(CONTENT)
    assert len(web.asked) == 1
    with open_media(f"{web.url}/a.mp4", limits, ID) as outer:
        with open_media(member, limits, hashlib.sha256(CONTENT[:5]).hexdigest()) as inner:
            assert inner.read_bytes() == CONTENT[:5]
        assert outer.read_bytes() == CONTENT  # still there, though another is kept now
    assert len(web.asked) == 2


@pytest.mark.parametrize(
    ("failure", "kind"),
    [("missing", "open"), ("changed", "open"), ("large", "too_large"), ("slow", "timeout")],
)
def test_media_that_cannot_be_had_are_decode_errors(web: Web, failure: str, kind: str) -> None:
    limits = {"large": DecodeLimits(max_file_bytes=9), "slow": DecodeLimits(timeout_seconds=1e-9)}
    name = "none.mp4" if failure == "missing" else "a.mp4"
    source_id = "0" * 64 if failure == "changed" else f"{failure:0>64}"
    with (
        pytest.raises(DecodeError) as caught,
        open_media(f"{web.url}/{name}", limits.get(failure, LIMITS), source_id),
    ):
        pass
    assert caught.value.kind == kind


def test_a_file_that_was_written_anew_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    stamp = facts_of(str(path)).stamp
    with open_media(str(path), LIMITS, ID, stamp) as media:
        assert media == path
    os.utime(path, ns=(1, 1))
    with open_media(str(path), LIMITS, ID, stamp) as media:  # moved by a copy: the same bytes
        assert media == path
    path.write_bytes(CONTENT[::-1])
    with (
        pytest.raises(DecodeError, match="has changed since it was planned"),
        open_media(str(path), LIMITS, ID, stamp),
    ):
        pass
    path.rename(tmp_path / "b.mp4")
    with pytest.raises(DecodeError) as caught, open_media(str(path), LIMITS, ID, stamp):
        pass
    assert caught.value.kind == "open"


def test_nothing_is_left_behind_even_by_a_process_that_is_killed(tmp_path: Path, web: Web) -> None:
    code = f"""
import os, signal
from pipeline.decode.decoder import DecodeLimits
from pipeline.sources.media import open_media
with open_media({web.url + "/a.mp4"!r}, DecodeLimits(), {ID!r}) as path:
    assert path.stat().st_size == {len(CONTENT)}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "tmp").iterdir()) == []
