"""Every file of the folder of videos ($TESSERA_VIDEOS): its frames, its end, its memory.

One test per row of the manifest; any folder of the same layout will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from pipeline.isolation import Death, Expendable
from tests.video_corpus import (
    LIMITS,
    ManifestRow,
    Twin,
    corpus_folder,
    examine,
    manifest_rows,
    slow_decode,
)

pytestmark = [pytest.mark.corpus, pytest.mark.slow]

ROWS = manifest_rows()
SECONDS = 120.0
MEMORY_BYTES = 1 << 30  # that a process may map, a file
NAMED = {
    "broken/audio_only.mp4": "no_video",
    "broken/corrupt_index_stsz.mp4": "corrupt",
    "broken/corrupt_sps.mp4": "corrupt",
    "broken/mjpeg_bomb_sof.avi": "corrupt",
    "broken/unknown_audio_codec.mp4": "no_video",
    "broken/unknown_codec.mkv": "unsupported_codec",
}
"""The class of files whose manifest leaves room for two."""
RESIDENT_BYTES = 700 << 20  # a 4K film compares frames of 25 MB each; a bomb is refused far below
REFUSED_BYTES = 300 << 20


@pytest.fixture(scope="module")
def process() -> Iterator[Expendable]:
    with Expendable(MEMORY_BYTES) as process:
        yield process


@pytest.mark.parametrize("row", ROWS or [None], ids=[row.name for row in ROWS] or ["none"])
def test_a_file_gives_its_frames_or_ends_as_the_manifest_says(
    row: ManifestRow | None, process: Expendable
) -> None:
    if row is None:
        pytest.skip(f"no videos at {corpus_folder()} (TESSERA_VIDEOS names another folder)")
    refusal = _refusal(row)
    twin = slow_decode(row.path) if refusal is None else Twin([], [], [], None, 0)
    wanted = [twin.pts[index] for index in twin.chosen]
    found = process.call(partial(examine, row.path, wanted), seconds=SECONDS)
    assert not isinstance(found, Death), found
    if refusal is not None:
        assert not found["strict"]
        assert not found["loose"]
        assert found["strict_error"] in refusal
        assert found["strict_error"] == NAMED.get(row.name, found["strict_error"])
        assert found["loose_error"] in refusal
        assert found["peak_bytes"] < REFUSED_BYTES
        return
    assert found["peak_bytes"] < RESIDENT_BYTES
    _check_number(row, twin, len(found["loose"]))
    if row.container.endswith("_pipe"):  # a still image: by Pillow, whatever its name
        assert found["loose"] == [0]
        return
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
    for frames in (found["together"], found["alone"]):
        for ours, theirs in zip(frames, twin.pixels, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert {at for at in found["key_pts"] if at <= twin.pts[-1]} <= set(twin.pts)
    _check_stream(found["streamed"], twin.pts, probe.time_base)


def _refusal(row: ManifestRow) -> set[str] | None:
    """The classes that a file may end in at once; None for one that gives frames."""
    if row.width and row.height and row.width * row.height > LIMITS.max_pixels:
        return {"too_large"}
    if not row.container:
        return {"open"}
    if not row.codec:
        return {"no_video", "unsupported_codec"}
    return None if row.frames else {"corrupt", "empty"}


def _check_number(row: ManifestRow, twin: Twin, count: int) -> None:
    """As many frames as the manifest says; or as the file's header and a full decode agree on."""
    if count != row.frames:
        assert twin.error is None
        assert count == len(twin.pts) == twin.header_frames, f"the manifest says {row.frames}"


def _check_stream(shown: list[int], pts: list[int], time_base: tuple[int, int]) -> None:
    """At each eighth of a second the last frame with pts <= t, until the last one's end."""
    ticks = time_base[1] / time_base[0] / 8
    rounding = 0.5 if 1000 * time_base[0] <= time_base[1] else 0.0
    for k, at in enumerate(shown):
        time = int(np.floor(pts[0] + k * ticks + rounding + 1e-9))
        assert at == pts[max(int(np.searchsorted(pts, time, side="right")) - 1, 0)]
    assert shown[-1] == pts[-1] or pts[-1] - shown[-1] <= ticks
    assert len(shown) >= (pts[-1] - pts[0]) / ticks
