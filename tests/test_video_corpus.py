"""Every file of the folder of videos ($TESSERA_VIDEOS): its frames, its end, its memory.

One test per row of the manifest; any folder of the same layout will do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from pipeline.isolation import Death, Expendable
from tests.video_corpus import (
    DOCS,
    LIMITS,
    ManifestRow,
    Twin,
    conformance_of,
    corpus_folder,
    examine,
    frames_of,
    manifest_rows,
    slow_decode,
    with_conformance,
)

pytestmark = [pytest.mark.corpus, pytest.mark.slow]

ROWS = manifest_rows()
SECONDS = 60.0  # for a pass over a file, at least
MEMORY_BYTES = 1 << 30  # that a process may map, a file
NAMED: dict[str, str | None] = {
    "cd38a806e4a87690": "no_video",  # audio_only.mp4
    "5ddbb90ebe8eedbe": "too_large",  # bomb_16384x8192.mp4
    "bf15fc8727d33fc4": "open",  # chunk_out_of_range.mp4
    "f47adcfab1df2421": "corrupt",  # corrupt_index_stsz.mp4
    "4ef2103a46de398e": "corrupt",  # corrupt_middle.mp4
    "5d3b308ea43ee2a3": "corrupt",  # corrupt_sps.mp4
    "aef0ce11c2eeefd6": "open",  # encrypted_clearkey.mp4
    "506c75b0cd9b756a": "open",  # html_error_page.mp4
    "412c2b8b11abd4f9": "corrupt",  # mjpeg_bomb_sof.avi
    "9aac385308d379ca": "open",  # moov_removed.mp4
    "7bcbddd9f64dccb2": "corrupt",  # no_timescale.mp4
    "1c7705ef2be3e85d": "corrupt",  # real_corrupted.mp4
    "f1266deaf6e4e8af": "corrupt",  # starts_mid_gop.ts
    "192ec45625461c9a": "open",  # text_renamed.mp4
    "8ba80982ec0b5b53": "corrupt",  # truncated_faststart.mp4
    "f0b2e111f9c4a0a2": "open",  # truncated_moov_at_end.mp4
    "d43b132cdd316e33": "no_video",  # unknown_audio_codec.mp4
    "fee1f1b58bdda069": "unsupported_codec",  # unknown_codec.mkv
    "e3b0c44298fc1c14": "open",  # zero_byte.mp4
    "2946e442f260b095": None,  # absurd_duration.mp4
    "9fd65a3eef8f1dba": None,  # huge_dims_header.mp4
    "85bdf25e72b4ec52": None,  # moov_named_free.mp4
    "a75275a0da80b27d": None,  # nonutf8_title.mp4
    "794cfcf8f66853ff": None,  # raw_no_pts.h264
    "19e282c6f5c74c65": None,  # trailing_garbage.mp4
    "bf946dd3feabf8fb": None,  # webm_named.mp4
}
"""What strict decoding ends in, by the begin of a file's SHA-256; None: it decodes in full."""
OUTCOMES: dict[str, dict[str, str]] = {}
"""By file and library: `the same`, or why it is refused."""
RESIDENT_BYTES = 700 << 20  # a 4K film compares frames of 25 MB each; a bomb is refused far below
REFUSED_BYTES = 250 << 20


@pytest.fixture(scope="module")
def process() -> Iterator[Expendable]:
    with Expendable(MEMORY_BYTES) as process:
        yield process


@pytest.fixture(scope="module")
def other_process() -> Iterator[Expendable]:
    """For the other libraries, which take memory of their own."""
    with Expendable(MEMORY_BYTES, ("torchcodec.decoders", "decord")) as process:
        yield process


@pytest.fixture(scope="module", params=ROWS or [None], ids=[row.name for row in ROWS] or ["none"])
def row(request: pytest.FixtureRequest) -> ManifestRow:
    """A file of the manifest: each test runs for all of them."""
    if request.param is None:
        pytest.skip(f"no videos at {corpus_folder()} (TESSERA_VIDEOS names another folder)")
    return request.param


@pytest.fixture(scope="module")
def twin(row: ManifestRow) -> Twin | None:
    """The file's full decode by plain PyAV; None where it is refused, or a still image."""
    return None if row.is_still or _refusal(row) else slow_decode(row.path)


def test_a_file_gives_its_frames_or_ends_as_the_manifest_says(
    row: ManifestRow, twin: Twin | None, process: Expendable
) -> None:
    refusal = _refusal(row)
    wanted = [twin.pts[index] for index in twin.chosen] if twin else []
    seconds = max(SECONDS, 10 * twin.seconds if twin else 0)
    found = process.call(partial(examine, row.path, wanted, seconds), seconds=2 * seconds)
    assert not isinstance(found, Death), found
    assert found["strict_error"] == NAMED.get(row.sha256[:16], found["strict_error"])
    if row.is_still:
        _check_still(row, found)
        return
    if twin is None:
        refusal = refusal or {"no_video"}  # nothing but cover art
        assert not found["strict"]
        assert not found["loose"]
        assert found["strict_error"] in refusal
        assert found["loose_error"] in refusal
        assert found["peak_bytes"] < REFUSED_BYTES
        return
    assert found["peak_bytes"] < RESIDENT_BYTES
    if twin.error == "colours":
        assert found["loose_error"] == "unsupported_codec"
        return
    if twin.error == "too_large":  # FFmpeg's decoder stops some frames earlier
        assert found["loose"] == twin.pts[: len(found["loose"])]
        assert len(found["loose"]) >= len(twin.pts) - 32
        assert found["loose_error"] in ("too_large", "corrupt")
        return
    _check_number(row, twin, len(found["loose"]))
    assert found["loose"] == twin.pts
    assert (found["loose_error"] is None) == (twin.error is None)
    if twin.error is None and not row.is_broken:
        assert found["strict"] == twin.pts
        assert found["strict_error"] is None
    else:  # strict decoding may find damage that is concealed otherwise, never more frames
        assert found["strict"] == twin.pts[: len(found["strict"])]
        assert found["strict"] == twin.pts or found["strict_error"] == "corrupt"
    probe = found["probe"]
    assert probe.rotation == row.rotation
    assert twin.pixels
    other = slow_decode(row.path, num_held=8) if row.is_broken else twin
    assert other is not None
    for frames in (found["together"], found["alone"]):
        for ours, theirs, again in zip(frames, twin.pixels, other.pixels, strict=True):
            if np.array_equal(theirs, again):  # PyAV agrees with itself
                np.testing.assert_array_equal(ours, theirs)
    if twin.clock_holds:
        keys = {at for at in found["key_pts"] if at <= twin.pts[-1]}
        assert keys <= set(twin.pts)
        if twin.error is None and not row.is_broken:
            assert len(keys) >= len(twin.key_pts) - 1
            levels = found["key_levels"]
            assert not levels or float(np.median(levels)) < 1
    _check_stream(found["streamed"], twin, probe.time_base)


@pytest.mark.parametrize("library", ["decord", "torchcodec"])
def test_another_library_shows_the_same_frames_or_refuses_the_file(
    library: Literal["decord", "torchcodec"],
    row: ManifestRow,
    twin: Twin | None,
    other_process: Expendable,
    request: pytest.FixtureRequest,
) -> None:
    if library == "torchcodec":
        request.getfixturevalue("torchcodec")
    if row.is_still:
        pytest.skip("a still image is Pillow's, whatever the library")
    wanted = [twin.pts[index] for index in twin.chosen] if twin else [0]
    if twin is None or row.is_broken:  # no frames, or some; no crash, no hang
        found = other_process.call(partial(frames_of, library, row.path, wanted), seconds=SECONDS)
        assert isinstance(found, str | list)
        return
    seconds = max(SECONDS, 20 * twin.seconds)
    frames = other_process.call(partial(frames_of, library, row.path, wanted), seconds=seconds)
    assert not isinstance(frames, Death), frames
    if isinstance(frames, str):
        outcome, _, reason = frames.partition(": ")
        assert outcome in ("unsupported_codec", twin.error)
        OUTCOMES.setdefault(row.name, {})[library] = reason.removeprefix(f"{library} ")
        return
    assert len(frames) == len(twin.pixels)
    assert max(map(_distance, frames, twin.pixels)) < 1
    OUTCOMES.setdefault(row.name, {})[library] = "the same"


def test_what_libraries_cannot_do_is_in_the_docs() -> None:
    """TESSERA_WRITE_DOCS=1 writes it."""
    valid = {row.name for row in ROWS if not row.is_broken and not row.is_still}
    if not valid or any(len(OUTCOMES.get(name, ())) < 2 for name in valid):
        pytest.skip("not every file was shown by every library")
    text = DOCS.read_text(encoding="utf-8")
    made = with_conformance(text, OUTCOMES)
    if os.environ.get("TESSERA_WRITE_DOCS"):
        DOCS.write_text(made, encoding="utf-8")
    elif set(re.findall(r"`([^`]+)`", conformance_of(text))) != valid:
        pytest.skip("another corpus than that of the docs")
    else:
        assert made == text


def _refusal(row: ManifestRow) -> set[str] | None:
    """The classes that a file may end in at once; None for one that gives frames."""
    if row.width and row.height and row.width * row.height > LIMITS.max_pixels:
        return {"too_large"}
    if not row.is_allowed:
        return {"open"}
    if not row.codec:
        return {"no_video", "unsupported_codec"}
    if row.frames:
        return None
    return {"corrupt", "empty"} if row.width else {"corrupt", "empty", "too_large"}


def _check_still(row: ManifestRow, found: dict[str, Any]) -> None:
    """One frame where Pillow reads the whole image, and no more than that."""
    assert found["peak_bytes"] < REFUSED_BYTES
    try:
        with Image.open(row.path) as image:
            width, height = image.size
            is_large = width * height > LIMITS.max_pixels
            if not is_large:
                image.load()
            assert row.frames in (None, 0, 1) or getattr(image, "is_animated", False)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        is_large = True
    except (OSError, SyntaxError, ValueError):
        assert found["loose_error"] in ("open", "corrupt")
        return
    assert found["loose"] == ([] if is_large else [0])
    assert found["loose_error"] == ("too_large" if is_large else None)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean absolute difference of two pictures, in levels of 255."""
    return float(np.abs(ours.astype(np.int16) - theirs).mean())


def _check_number(row: ManifestRow, twin: Twin, count: int) -> None:
    """As many frames as the manifest says; or as the file's header and a full decode agree on."""
    if count != row.frames:
        assert twin.error is None
        assert count == len(twin.pts) == twin.header_frames, f"the manifest says {row.frames}"


def _check_stream(shown: list[int], twin: Twin, time_base: tuple[int, int]) -> None:
    """At each eighth of a second the last frame with pts <= t, until the last one's end."""
    pts = twin.pts
    ticks = time_base[1] / time_base[0] / 8
    rounding = 0.5 if 1000 * time_base[0] <= time_base[1] else 0.0
    for k, at in enumerate(shown):
        time = int(np.floor(pts[0] + k * ticks + rounding + 1e-9))
        assert at == pts[max(int(np.searchsorted(pts, time, side="right")) - 1, 0)]
    assert pts[0] + len(shown) * ticks + rounding > pts[-1]
    last = max(twin.step, pts[-1] - pts[-2] if len(pts) > 1 else 0)
    assert pts[0] + (len(shown) - 1) * ticks < pts[-1] + last + rounding
