"""Damage: nothing is kept, or the prefix, or all that is sound; what is lost is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import open_decoder
from pipeline.decode.decoder import DecodeSettings
from pipeline.decode.errors import DecodeError
from pipeline.decode.scan import gather_scan
from tests.test_decode import LIMITS, write_video

KEEPING = ("prefix", "skip")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A film of noise with a key frame every 12 frames, and the same with a hole in its middle."""
    folder = tmp_path_factory.mktemp("damage")
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(96)]
    options = {"crf": "16", "g": "12", "bf": "0", "sc_threshold": "0"}
    whole = write_video(folder / "whole.mp4", frames, options=options)
    content = bytearray(whole.read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle : middle + 9000] = generator.bytes(9000)
    (folder / "holed.mp4").write_bytes(content)
    return whole, folder / "holed.mp4"


def test_a_damaged_file_gives_nothing_its_prefix_or_all_that_is_sound(
    films: tuple[Path, Path],
) -> None:
    whole, holed = films
    truth = gather_scan(open_decoder("pyav", LIMITS), whole)
    index_of_pts = {pts: index for index, pts in enumerate(truth.pts.tolist())}
    scans = {
        damage: gather_scan(open_decoder("pyav", LIMITS, DecodeSettings(damage=damage)), holed)
        for damage in ("raise", *KEEPING)
    }
    assert len(scans["raise"].pts) == 0
    prefix, skipped = (scans[damage].pts.tolist() for damage in KEEPING)
    assert 12 < len(prefix) < len(skipped) < 96
    assert skipped[: len(prefix)] == prefix
    for damage in KEEPING:  # no frame that comes is other than it was coded
        for pts, frame in zip(scans[damage].pts.tolist(), scans[damage].frames):
            np.testing.assert_array_equal(frame, truth.frames[index_of_pts[pts]])
    for scan in scans.values():
        assert scan.error is not None
        assert scan.error.kind == "corrupt"
        assert scan.error.num_damaged >= 1
    assert scans["prefix"].after_damage.tolist() == []
    lost = np.flatnonzero(np.diff([index_of_pts[pts] for pts in skipped]) > 1) + 1
    assert scans["skip"].after_damage.tolist() == lost.tolist()
    assert [index_of_pts[skipped[index]] % 12 for index in lost] == [0] * len(lost)  # a key frame


def test_samples_and_streams_end_at_the_damage_or_go_past_it(films: tuple[Path, Path]) -> None:
    whole, holed = films
    shape = {"height": 64, "width": 64}
    ends = [k / 24 + 0.001 for k in (3, 10, 90, 95)]
    truth = open_decoder("pyav", LIMITS).sample(whole, ends, **shape).pixels
    with pytest.raises(DecodeError, match="corrupt"):
        open_decoder("pyav", LIMITS).sample(holed, [*ends[:2], 2.2], **shape)
    keeping = {name: open_decoder("pyav", LIMITS, DecodeSettings(damage=name)) for name in KEEPING}
    every = [k / 24 + 0.001 for k in range(96)]
    before = keeping["prefix"].sample(holed, every, **shape)
    assert 12 < len(before.pts) < 60
    assert keeping["prefix"].damage is not None
    np.testing.assert_array_equal(keeping["skip"].sample(holed, ends, **shape).pixels, truth)
    with pytest.raises(DecodeError, match="corrupt"):
        list(open_decoder("pyav", LIMITS).stream(holed, fps=24, **shape))
    lengths = {
        name: sum(len(each.pts) for each in decoder.stream(holed, fps=24, **shape))
        for name, decoder in keeping.items()
    }
    assert lengths == {"prefix": len(before.pts), "skip": 96}


def test_without_strictness_ffmpeg_may_conceal(films: tuple[Path, Path]) -> None:
    _, holed = films
    strict, loose = (
        gather_scan(
            open_decoder("pyav", LIMITS, DecodeSettings(damage="skip", strict=strict)), holed
        )
        for strict in (True, False)
    )
    assert set(strict.pts.tolist()) < set(loose.pts.tolist())


def test_concealed_damage_looks_the_same_wherever_one_looks(films: tuple[Path, Path]) -> None:
    _, holed = films
    decoder = open_decoder("pyav", LIMITS, DecodeSettings(damage="skip", strict=False))
    times = [k / 24 + 0.001 for k in (40, 50, 70, 90)]
    shape = {"height": 64, "width": 64}
    together = decoder.sample(holed, [k / 24 + 0.001 for k in range(96)], **shape)
    for time in times:
        alone = decoder.sample(holed, [time], **shape)
        index = together.pts.tolist().index(alone.pts[0])
        np.testing.assert_array_equal(alone.pixels[0], together.pixels[index])


def test_a_clock_that_stands_still_is_read_from_its_start(
    films: tuple[Path, Path], tmp_path: Path
) -> None:
    content = bytearray(films[0].read_bytes())
    at = content.index(b"stts") + 4
    assert content[at + 4 : at + 12] == (1).to_bytes(4, "big") + (96).to_bytes(4, "big")
    content[at + 12 : at + 16] = bytes(4)  # of 96 frames each lasts no time
    (tmp_path / "still.mp4").write_bytes(content)
    decoder, whole = open_decoder("pyav", LIMITS), open_decoder("pyav", LIMITS)
    probe = decoder.probe(tmp_path / "still.mp4")
    scan = gather_scan(decoder, tmp_path / "still.mp4")
    assert len(scan.pts) == 96
    shape = {"height": 64, "width": 64}
    truth = whole.sample(films[0], [k / 24 + 0.001 for k in range(96)], **shape).pixels
    for index in (3, 50, 95):
        time = (scan.pts[index] - scan.pts[0]) * probe.time_base[0] / probe.time_base[1]
        shown = decoder.sample(tmp_path / "still.mp4", [time + 1e-9], **shape)
        np.testing.assert_array_equal(shown.pixels[0], truth[index])


def test_a_sound_file_has_no_damage_whatever_the_settings(films: tuple[Path, Path]) -> None:
    for damage in ("raise", *KEEPING):
        for strict in (True, False):
            decoder = open_decoder("pyav", LIMITS, DecodeSettings(damage=damage, strict=strict))
            scan = gather_scan(decoder, films[0])
            assert (len(scan.pts), scan.error, decoder.damage) == (96, None, None)
