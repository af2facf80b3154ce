"""The screen: files are dropped by header and key frames; what is not known drops nothing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.annotate import AnnotateJob
from pipeline.build import build
from pipeline.clip import clips_from_parquet
from pipeline.config import BuildConfig, ScreenSettings, SelectSettings
from pipeline.decode import open_decoder
from pipeline.decode.decoder import DecodeLimits
from pipeline.screen import screened_out
from pipeline.sources.content import content_id


def write_video(path: Path, levels: list[int], key_every: int, height: int = 64) -> Path:
    """A film of grey noise at 24 fps around these levels, a key frame every so many frames."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, 96, "yuv420p"
        stream.options = {"g": str(key_every), "sc_threshold": "0", "crf": "20"}
        stream.codec_context.time_base = Fraction(1, 24)
        for level in levels:
            noise = generator.integers(0, 20, (height, 96, 3))
            picture = np.clip(noise + level, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


def dropped_by(path: Path, **drop: str) -> str | None:
    decoder = open_decoder("pyav")
    settings = ScreenSettings(drop=drop)
    return screened_out(decoder, path, decoder.probe(path), settings)


def test_the_header_drops_what_is_too_small_or_too_short(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [100] * 48, 24)
    assert dropped_by(path, too_small="height < 240") == "too_small"
    assert dropped_by(path, too_short="duration_seconds < 2.5") == "too_short"
    assert dropped_by(path, fine="height < 64", also="duration_seconds < 1.5") is None
    assert dropped_by(path, narrow="width < 100", low="height < 100") == "narrow"
    assert dropped_by(path) is None


def test_key_frames_speak_for_a_file_that_has_enough(tmp_path: Path) -> None:
    dark = write_video(tmp_path / "dark.mp4", [0] * 96, 24)
    assert dropped_by(dark, too_dark="brightness < 30") == "too_dark"
    assert dropped_by(dark, too_blurred="sharpness < 0") is None
    begins_dark = write_video(tmp_path / "begins_dark.mp4", [0] * 40 + [150] * 80, 24)
    assert dropped_by(begins_dark, too_dark="brightness < 30") is None


def test_too_few_key_frames_speak_for_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0] * 96, 48)
    assert dropped_by(path, too_dark="brightness < 30") is None
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    assert dropped_by(tmp_path / "a.png", too_dark="brightness < 30") is None
    assert dropped_by(tmp_path / "a.png", too_small="height < 64") == "too_small"


def test_key_frames_of_the_beginning_alone_speak_for_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0] * 24 + [100] * 72, 1)
    decoder = open_decoder("pyav")
    rules = {"too_dark": "brightness < 30"}
    for most, dropped in ((20, None), (60, None), (96, None)):
        settings = ScreenSettings(drop=rules, max_key_frames=most)
        assert screened_out(decoder, path, decoder.probe(path), settings) == dropped


def test_nothing_is_scanned_of_a_file_that_is_screened_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", [100] * 48, 24)
    config = BuildConfig(
        sources=(str(path),),
        out=str(tmp_path / "data"),
        screen=ScreenSettings(drop={"too_small": "height < 100"}),
    )
    monkeypatch.setattr("pipeline.annotate.gather_scan", None)
    source = SimpleNamespace(
        location=str(path), source_id=content_id(str(path), DecodeLimits()), uri="a.mp4", stamp=""
    )
    (row,) = AnnotateJob(config, str(tmp_path / "data")).scan(source)  # type: ignore[arg-type]
    assert row.outcome == "dropped:too_small"


def test_a_screened_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "small.mp4", [100] * 48, 24)
    write_video(tmp_path / "films" / "large.mp4", [100] * 48, 24, height=128)
    out = tmp_path / "data"
    config = BuildConfig(
        sources=(str(tmp_path / "films"),),
        out=str(out),
        executor="inline",
        screen=ScreenSettings(drop={"too_small": "height < 100"}),
        select=SelectSettings(drop={}),
    )
    build(config, until="select")
    rows = clips_from_parquet(out / "selection.parquet")
    (small,) = (row for row in rows if row.uri.endswith("small.mp4"))
    assert (small.outcome, small.kind, small.num_frames) == ("dropped:too_small", "", 0)
    assert (small.source_height, small.end_seconds) == (64, 2.0)
    assert {row.outcome for row in rows if row.uri.endswith("large.mp4")} == {
        "kept",
        "dropped:tail",
    }


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ({"x": "motion < 3"}, "drop.x"),
        ({"x": "height <> 3"}, "drop.x"),
        ({"Bad name": "height < 3"}, "Bad name"),
    ],
)
def test_a_rule_that_cannot_be_asked_is_refused(drop: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScreenSettings(drop=drop)
