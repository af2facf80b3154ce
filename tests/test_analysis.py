"""Analysis: the rows of a file cover it, and say what each part of it is."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.analysis import analyse
from pipeline.clip import Clip, clips_from_parquet, clips_to_parquet
from pipeline.config import BuildConfig, ClipSettings
from pipeline.decode.decoder import Probe
from pipeline.decode.scan import Scan
from pipeline.shots.settings import ShotSettings
from tokenizer.settings import to_dict

TEMPLATE = Clip(clip_id="", source_id="ab" * 32, uri="films/a.mp4")


def take(seed: int, count: int, speed: float = 0.25) -> np.ndarray:
    """A soft coloured picture that moves, float (count, 144, 256, 3)."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(40, 256, (9, 16, 3)).repeat(16, 0).repeat(16, 1).astype(float)
    for axis in (0, 1):
        picture = sum(np.roll(picture, shift, axis) for shift in range(-6, 7)) / 13
    return np.stack([np.roll(picture, round(4 * speed * k), axis=1) for k in range(count)])


@cache
def film() -> np.ndarray:
    """At 24 fps: a take of 48 frames, a dissolve of 12, one of 48, a cut, one of 4, a cut, 40."""
    share = (np.arange(1, 13) / 13)[:, None, None, None]
    one, two = take(1, 60), take(2, 60)
    mixed = (1 - share) * one[48:] + share * two[:12]
    parts = [one[:48], mixed, two[12:], take(3, 6), take(4, 40)]
    return np.concatenate(parts).astype(np.uint8)


def scanned(frames: np.ndarray, after_damage: tuple[int, ...] = ()) -> tuple[Probe, Scan]:
    """What a decoder says of these frames at 24 fps."""
    height, width = frames.shape[1:3]
    probe = Probe(
        kind="video",
        width=width,
        height=height,
        time_base=(1, 12288),
        rotation=0,
        codec="h264",
        container="mp4",
        pixel_format="yuv420p",
        fps=24.0,
        duration_seconds=None,
        num_frames=None,
        stored_width=width,
        stored_height=height,
    )
    pts = 512 * np.arange(len(frames), dtype=np.int64)

    def smaller(rows: int, columns: int) -> np.ndarray:
        shape = (len(frames), rows, height // rows, columns, width // columns, 3)
        return frames.reshape(shape).mean(axis=(2, 4))

    greys = smaller(72, 128)[::3].mean(axis=-1).astype(np.uint8)
    return probe, Scan(
        pts, smaller(36, 64).astype(np.uint8), pts[::3], greys, np.array(after_damage), None
    )


def rows_of(frames: np.ndarray, **sections: object) -> list[Clip]:
    config = BuildConfig(sources=("films",), out="data", **sections)  # type: ignore[arg-type]
    return list(analyse(TEMPLATE, *scanned(frames), config))


def seconds_of(rows: list[Clip], outcome: str) -> float:
    return round(sum(row.duration_seconds for row in rows if row.outcome == outcome), 3)


@pytest.mark.slow
def test_every_second_is_accounted_for_and_transitions_are_in_no_clip() -> None:
    rows = rows_of(film())
    edges = [row.start_pts for row in rows] + [154 * 512]
    assert [row.end_pts for row in rows] == edges[1:]
    assert rows[0].start_pts == 0
    (mixed,) = (row for row in rows if row.outcome == "dropped:dissolve")
    assert abs(mixed.start_pts - 48 * 512) <= 2 * 512
    assert abs(mixed.end_pts - 60 * 512) <= 2 * 512
    assert seconds_of(rows, "dropped:too_short") == pytest.approx(6 / 24, abs=0.001)
    assert not any(row.num_frames and row.outcome for row in rows)
    for row in rows:
        assert (row.num_frames > 0) == (row.outcome == "")


def test_the_length_of_a_shot_has_bounds() -> None:
    short = rows_of(film(), shots=ShotSettings(shortest_seconds=1.9))
    assert seconds_of(short, "dropped:too_short") == pytest.approx((6 + 40) / 24, abs=0.001)
    split = rows_of(take(1, 96).astype(np.uint8), shots=ShotSettings(longest_seconds=2.0))
    assert [row.start_seconds for row in split if not row.outcome] == [0.0, 2.0]


def test_no_clip_spans_frames_that_were_lost() -> None:
    probe, scan = scanned(take(1, 96).astype(np.uint8), after_damage=(40,))
    scan.pts[40:] += 20 * 512
    scan.grey_pts[scan.grey_pts >= 40 * 512] += 20 * 512
    config = BuildConfig(sources=("films",), out="data")
    rows = list(analyse(TEMPLATE, probe, scan, config))
    assert {40 * 512} == {row.end_pts for row in rows if row.start_pts < 40 * 512} - {13824}
    assert min(row.start_pts for row in rows if row.start_pts >= 40 * 512) == 60 * 512


def test_black_borders_are_measured_and_left_out_of_the_crop() -> None:
    frames = take(1, 40).astype(np.uint8)
    frames[:, :18] = frames[:, 126:] = 0
    for is_cropped in (True, False):
        rows = rows_of(frames, clips=ClipSettings(crop_bars=is_cropped, buckets=("9x64x96",)))
        for row in rows:
            assert row.scores["black_bars"] == pytest.approx(0.25)
            assert row.content == (0, 18, 256, 108)
        crop = (47, 18, 162, 108) if is_cropped else (20, 0, 216, 144)
        assert {row.crop for row in rows if row.num_frames} == {crop}


def test_flow_is_measured_within_a_take() -> None:
    slow = [row for row in rows_of(take(1, 60, 0.25).astype(np.uint8)) if row.num_frames]
    assert [row.scores["flow"] for row in slow] == pytest.approx([12.0] * len(slow), rel=0.2)
    still = rows_of(np.concatenate([take(1, 30, 0), take(2, 30, 0)]).astype(np.uint8))
    assert {row.scores["flow"] for row in still if row.num_frames} == {0.0}


@pytest.mark.slow
def test_the_digits_of_the_demo_have_no_transitions_and_no_borders(tmp_path: Path) -> None:
    from pipeline.build import build
    from pipeline.corpus import write_corpus

    write_corpus(tmp_path / "corpus", seed=3, num_clips=60, num_images=6)
    out, buckets = tmp_path / "data", ClipSettings(buckets=("9x64x64", "1x64x64"))
    config = BuildConfig(
        sources=(str(tmp_path / "corpus"),), out=str(out), executor="inline", clips=buckets
    )
    build(config, until="annotate")
    rows = [row for unit in sorted(out.glob("parts/*.parquet")) for row in clips_from_parquet(unit)]
    assert not {row.outcome for row in rows} & {"dropped:dissolve", "dropped:fade"}
    assert {row.crop[2:] for row in rows if row.num_frames} == {(64, 64)}
    assert {row.scores["black_bars"] for row in rows if row.kind} == {0.0}


def test_rows_survive_parquet_and_those_of_earlier_versions_are_read(tmp_path: Path) -> None:
    rows = rows_of(film())
    clips_to_parquet(rows, tmp_path / "a.parquet")
    assert clips_from_parquet(tmp_path / "a.parquet") == rows
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.drop(["content", "flow", "black_bars"]), tmp_path / "b.parquet")
    for row, earlier in zip(rows, clips_from_parquet(tmp_path / "b.parquet"), strict=True):
        assert earlier.scores["motion"] == row.scores["motion"]
        assert (earlier.scores["flow"], earlier.scores["black_bars"]) == (None, None)
        assert earlier.content == (0, 0, 0, 0)


def test_a_build_of_a_film_drops_its_transitions(tmp_path: Path) -> None:
    from pipeline.build import build

    (tmp_path / "films").mkdir()
    with av.open(str(tmp_path / "films" / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = 144, 256, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        for frame in film():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    out = tmp_path / "data"
    config = BuildConfig(sources=(str(tmp_path / "films"),), out=str(out), executor="inline")
    counts = build(config, until="select")
    rows = clips_from_parquet(out / "selection.parquet")
    assert counts["n_in"] == len(rows)
    assert sum(row.outcome == "dropped:dissolve" for row in rows) == 1
    assert sum(row.duration_seconds for row in rows) == pytest.approx(154 / 24, abs=0.01)
    assert to_dict(config)["clips"]["crop_bars"] is True
