"""The report: it stands alone, shows what is there, and runs nothing that is in it."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import build
from pipeline.cli import main
from pipeline.config import BuildConfig, SelectSettings, TokenizeSettings
from pipeline.inspection.charts import WIDTH, histogram
from pipeline.inspection.funnel import funnel
from pipeline.inspection.originals import Wanted, read_originals
from pipeline.inspection.report import write_report
from pipeline.inspection.timings import stage_times
from pipeline.rules import Rule
from pipeline.storage import open_storage

HOSTILE = "<script>document.title='ran'</script><img src=http://example.test/x.png>\x1b[2J & \"q\""
SECTIONS = (
    *("funnel", "scores", "galleries", "shards", "captions", "codebook", "times", "errors"),
    "settings",
)
BROWSERS_OWN = ("google.com", "googleapis.com", "gvt1.com")
"""Where Chromium looks for its own updates."""


@pytest.fixture(scope="module")
def built(
    small_videos: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A real build of a few videos, one with a hostile caption, some dropped, one broken."""
    videos = tmp_path_factory.mktemp("report") / "videos"
    shutil.copytree(small_videos, videos)
    (videos / "even" / "0.txt").write_text(HOSTILE)
    (videos / "odd" / "1.txt").write_text("caption " * 200)
    out = videos.parent / "data"
    build(
        BuildConfig(
            sources=(str(videos),),
            out=str(out),
            executor="inline",
            num_cpus=2,
            select=SelectSettings(
                drop={"too_still": "motion < 11", "too_bright": "brightness > 90"}
            ),
            tokenize=TokenizeSettings(
                tokenizer=str(random_tokenizer), samples_per_shard=4, batch_size=4
            ),
        )
    )
    return out


def test_the_build_leaves_a_report_that_names_every_rule(built: Path) -> None:
    text = (built / "report.html").read_text(encoding="utf-8")
    assert [name for name in SECTIONS if f'<section id="{name}">' not in text] == []
    for shown in ("too_still", "motion &lt; 11", "too_bright: &gt; 90", "odd/broken.mp4", "tail"):
        assert shown in text, shown
    assert text.count("data:image/jpeg;base64,") > 30


def test_the_same_folder_gives_the_same_bytes(built: Path) -> None:
    once = write_report(built).read_bytes()
    assert write_report(built).read_bytes() == once


def test_nothing_in_the_report_loads_or_runs(built: Path) -> None:
    text = write_report(built).read_text(encoding="utf-8")
    tags = unclosed_tags(text)
    assert tags == []
    for outside in ("<script", "@import", "url(", "<link", "<iframe", "\x1b"):
        assert outside not in text
    assert set(re.findall(r'src="(.{22})', text)) == {"data:image/jpeg;base64"}
    assert "default-src 'none'" in text
    assert "&lt;script&gt;document.title=" in text
    for picture in re.findall(r"<svg.*?</svg>", text):
        xml.etree.ElementTree.fromstring(picture)


def test_without_its_sources_the_report_says_so(built: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(built, tmp_path / "data")
    plan = pq.read_table(copy / "plan.parquet")
    locations = pa.array([f"/nowhere/{each}" for each in plan["location"].to_pylist()])
    place = plan.schema.get_field_index("location")
    pq.write_table(plan.set_column(place, "location", locations), copy / "plan.parquet")
    text = write_report(copy).read_text(encoding="utf-8")
    assert "no picture: gone" in text
    assert "data:image" not in text


def test_the_command_writes_the_report(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(built), "--seconds", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(built / "report.html")
    assert '<section id="galleries">' not in (built / "report.html").read_text(encoding="utf-8")
    write_report(built)
    assert main(["report", str(built / "parts")]) == 2
    assert "not a dataset" in capsys.readouterr().err


def test_the_funnel_counts_each_clip_once_and_what_each_rule_would_do() -> None:
    outcomes = ["kept", "kept", "dropped:dark", "dropped:dark", "dropped:still", "error:open"]
    accounts = pa.table(
        {
            "outcome": outcomes,
            "start_seconds": [0.0] * 6,
            "end_seconds": [10.0] * 5 + [0.0],
            "brightness": [50.0, 60.0, 5.0, 5.0, 70.0, None],
            "motion": [5.0, 5.0, 0.1, 9.0, 0.2, None],
        }
    )
    rules = {
        "dark": Rule(score="brightness", comparison="<", bound=10.0),
        "still": Rule(score="motion", comparison="<", bound=1.0),
    }
    steps = funnel(accounts, rules)
    assert [step.outcome for step in steps] == ["error:open", "dropped:dark", "dropped:still"]
    assert [step.clips_left for step in steps] == [5, 3, 2]
    assert [step.seconds_left for step in steps] == [50.0, 30.0, 20.0]
    assert [(step.alone, step.only) for step in steps] == [(None, None), (2, 1), (2, 1)]
    assert 6 - sum(step.clips for step in steps) == outcomes.count("kept")


@pytest.mark.slow
@pytest.mark.usefixtures("another_process")
def test_a_file_that_kills_its_decoder_costs_only_its_own_pictures(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.clip import clips_from_parquet

    kept = [row for row in clips_from_parquet(built / "manifest.parquet") if row.outcome == "kept"]
    films = [row for row in kept if row.kind == "video"]
    victim = films[0].source_id
    path = next(p for p in built.parent.rglob("*.mp4") if str(p).endswith(films[0].uri))
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os\n"
        "from pipeline.decode.passes import Decoder\n"
        "decode = Decoder.clips\n"
        "def clips(self, path, requests):\n"
        f"    if str(path) == {str(path)!r}: os._exit(11)\n"
        "    return decode(self, path, requests)\n"
        "Decoder.clips = clips\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wanted = [Wanted(row.source_id, row.request()) for row in films]
    originals = read_originals(built, wanted, seconds=60)
    for row, original in zip(films, originals):
        assert original.reason == ("crashed" if row.source_id == victim else "")
        assert (original.frames is None) == (row.source_id == victim)
    assert {each.reason for each in read_originals(built, wanted, seconds=0)} == {"out of time"}


@pytest.mark.usefixtures("another_process")
def test_originals_are_what_the_build_decoded(built: Path, tmp_path: Path) -> None:
    """Pixel shards hold the frames that the build saw; decoding anew gives the same."""
    from pipeline.build import build_pixels
    from pipeline.inspection.originals import clip_request
    from pipeline.shards import open_dataset
    from tokenizer.settings import read_settings

    pixels = build_pixels(read_settings(BuildConfig, built / "config.yaml", {}))
    samples = open_dataset(pixels).samples(None, "t9_h64_w64")
    rows = samples.metadata([0, 1])
    wanted = [Wanted(row["source_id"], clip_request(row)) for row in rows]
    for original, frames in zip(read_originals(built, wanted, seconds=60), samples.gather([0, 1])):
        assert original.frames is not None
        np.testing.assert_array_equal(original.frames, frames)


def test_times_come_from_what_commits_say_of_their_runs(built: Path) -> None:
    annotate, tokenize = stage_times(open_storage(built))
    commits = [path.name.partition("-")[0] for path in (built / "_commits").iterdir()]
    assert (annotate.name, annotate.num_units) == ("annotate", commits.count("annotate"))
    assert (tokenize.name, tokenize.num_units) == ("tokenize", commits.count("tokenize"))
    assert 0 < tokenize.encode_seconds <= tokenize.work_seconds
    assert 0 < tokenize.num_encoded <= tokenize.num_clips
    assert tokenize.span is not None
    assert sum(tokenize.hosts.values()) == tokenize.num_units


numbers = st.floats(-1e9, 1e9) | st.integers(-5, 5).map(float)


@given(st.lists(numbers, min_size=1), st.lists(numbers), st.lists(numbers, max_size=3))
def test_a_histogram_shows_every_value_and_every_bound(
    kept: list[float], others: list[float], bounds: list[float]
) -> None:
    named = [(bound, True, f"<{index}>") for index, bound in enumerate(bounds)]
    picture = histogram(np.array(kept), np.array(others), named)
    shapes = list(xml.etree.ElementTree.fromstring(picture))
    assert [each.text for each in shapes if each.get("class") == "label"] == [
        label for _, _, label in sorted(named)
    ]
    places = [float(each.get("x1", 0)) for each in shapes if each.get("class") == "bound"]
    assert all(0 <= x <= WIDTH for x in places)
    heights = dict.fromkeys(("kept", "dropped"), 0.0)
    for each in shapes:
        if each.get("class") in heights:
            heights[str(each.get("class"))] += float(str(each.get("height")))
    ratio = len(others) / len(kept)
    assert heights["dropped"] == pytest.approx(ratio * heights["kept"], rel=0.05, abs=5)


@pytest.mark.slow
def test_in_a_browser_the_report_is_quiet_and_shows_hostile_text(
    built: Path, tmp_path: Path
) -> None:
    chromium = find_chromium()
    write_report(built)
    dom, console, requests = opened(chromium, built / "report.html")
    assert (console, requests) == ([], [])
    assert [name for name in SECTIONS if f'<section id="{name}">' not in dom] == []
    assert "/data</title>" in dom
    assert "&lt;script&gt;document.title='ran'&lt;/script&gt;" in dom
    assert dom.count("<img ") == dom.count('src="data:image/jpeg;base64,')
    control = tmp_path / "control.html"  # what the above would look like if it were not so
    control.write_text('<img src="http://example.test/x.png"><script>console.error("!")</script>')
    _, console, requests = opened(chromium, control)
    assert len(console) == 1
    assert requests == ["GET http://example.test/x.png HTTP/1.1"]


def find_chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.environ.get("TESSERA_REQUIRE_CHROMIUM"):
        pytest.fail("chromium must be here: TESSERA_REQUIRE_CHROMIUM is set")
    if found is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return found


def opened(chromium: str, page: Path) -> tuple[str, list[str], list[str]]:
    """(DOM, messages on the console, requests) of a page in a headless browser."""
    with dead_end() as (port, requests), tempfile.TemporaryDirectory() as profile:
        command = [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *(f"--proxy-server=http://127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>"),
            *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom"),
            page.as_uri(),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout, console, [each for each in requests if not is_browsers_own(each)]


def is_browsers_own(request: str) -> bool:
    host = re.sub(r"^\w+ (?:\w+://)?([^/:]+).*", r"\1", request)
    return host.endswith(BROWSERS_OWN)


@contextmanager
def dead_end() -> Iterator[tuple[int, list[str]]]:
    """A proxy that notes what it is asked for and answers nothing: (port, request lines)."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    asked = connection.recv(4096).split(b"\r\n")[0].decode("latin-1")
                    if asked:  # a browser that ends closes connections on which it said nothing
                        requests.append(asked)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def unclosed_tags(text: str) -> list[str]:
    open_tags: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

    checker = Checker()
    checker.feed(text)
    checker.close()
    return open_tags
