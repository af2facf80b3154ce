"""The passes of a decoder agree: sample, stream, clips, key frames, from disk or from memory."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import open_decoder
from pipeline.decode.decoder import ClipRequest
from pipeline.decode.errors import DecodeError
from tests.test_decode import greys, index_of, write_video

SHAPE = {"height": 32, "width": 48}
CLOCK = Fraction(1, 12288)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Five seconds of flat frames at a variable rate, a key frame a second, not from zero."""
    generator = np.random.default_rng(3)
    steps = generator.choice([256, 512, 513, 900, 4000], 59)
    pts = [12288, *(12288 + np.cumsum(steps)).tolist()]
    path = tmp_path_factory.mktemp("passes") / "a.mp4"
    options = {"crf": "10", "g": "12", "keyint_min": "12", "sc_threshold": "0"}
    return write_video(path, greys(60), pts, CLOCK, options=options), pts


def shown_at(pts: list[int], seconds: Fraction) -> int:
    """The slow twin: which frame is on display then."""
    time = (pts[0] + seconds / CLOCK + Fraction(1, 2)).__floor__()
    return max(index for index, at in enumerate(pts) if at <= time or index == 0)


times = st.lists(
    st.floats(0, 8, allow_nan=False) | st.fractions(0, 8, max_denominator=240),
    min_size=1,
    max_size=12,
).map(sorted)


@given(times)
@settings(max_examples=40)
def test_a_sample_is_the_frame_on_display_wherever_one_looks(
    film: tuple[Path, list[int]], seconds: list[float]
) -> None:
    path, pts = film
    frames = open_decoder("pyav").sample(path, seconds, **SHAPE)
    expected = [shown_at(pts, Fraction(each)) for each in seconds]
    assert [index_of(frame) for frame in frames.pixels] == [index % 60 for index in expected]
    assert frames.pts.tolist() == [pts[index] for index in expected]
    assert np.allclose(frames.seconds, [(pts[i] - pts[0]) * float(CLOCK) for i in expected])


@pytest.mark.slow
@given(
    fps=st.sampled_from([1.0, 8.0, 23.976, 24.0, 60.0]),
    chunk_frames=st.integers(1, 40),
    start=st.floats(0, 4),
    length=st.none() | st.floats(0.01, 6),
)
@settings(max_examples=40)
def test_a_stream_in_chunks_is_the_samples_at_its_times(
    film: tuple[Path, list[int]], fps: float, chunk_frames: int, start: float, length: float | None
) -> None:
    path, pts = film
    decoder = open_decoder("pyav")
    end = None if length is None else start + length
    chunks = list(
        decoder.stream(
            path,
            fps=fps,
            start_seconds=start,
            end_seconds=end,
            chunk_frames=chunk_frames,
            **SHAPE,
        )
    )
    assert all(len(each.pts) == chunk_frames for each in chunks[:-1])
    shown = [int(at) for each in chunks for at in each.pts]
    step = 1 / Fraction(fps).limit_denominator(100_000)
    at = [Fraction(start) + k * step for k in range(len(shown))]
    assert shown == [pts[shown_at(pts, each)] for each in at]
    nominal = Fraction(1 / (decoder.probe(path).fps or 0)) / CLOCK
    ticks = pts[-1] - pts[0] + max(pts[-1] - pts[-2], nominal)
    stops = Fraction(end) if end is not None else ticks * CLOCK
    assert (
        len(shown) == max(0, -((Fraction(start) - stops) // step))
        or abs((at[-1] + step if at else Fraction(start)) - stops) < 2 * CLOCK
    )
    if shown:
        whole = np.concatenate([each.pixels for each in chunks])
        np.testing.assert_array_equal(whole, decoder.sample(path, at, **SHAPE).pixels)


def test_key_frames_are_those_that_were_coded_so(film: tuple[Path, list[int]]) -> None:
    path, pts = film
    found = list(open_decoder("pyav").keyframes(path, height=36, width=64))
    assert [int(each.pts[0]) for each in found] == pts[::12]
    assert [index_of(each.pixels[0]) for each in found] == [0, 12, 24, 36, 48]
    assert found[0].seconds[0] == 0
    few = open_decoder("pyav").keyframes(path, height=36, width=64, max_frames=2)
    assert len(list(few)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pyav", "decord", "torchcodec"])
def test_a_file_in_memory_gives_what_the_file_on_disk_does(
    name: str, film: tuple[Path, list[int]], request: pytest.FixtureRequest
) -> None:
    if name == "torchcodec":
        request.getfixturevalue("torchcodec")
    path, pts = film
    decoder = open_decoder(name)
    content = path.read_bytes()
    assert decoder.probe(content) == decoder.probe(path)
    asked = ClipRequest(
        start_pts=pts[5], end_pts=pts[50], fps=8, num_frames=9, crop=(0, 0, 48, 32), **SHAPE
    )
    for ours, theirs in (
        (decoder.clips(content, [asked]), decoder.clips(path, [asked])),
        (decoder.scan(content), decoder.scan(path)),
    ):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(one[1]), np.asarray(two[1]))
    seconds = [0.0, 1.5, 3.25]
    np.testing.assert_array_equal(
        decoder.sample(content, seconds, **SHAPE).pixels,
        open_decoder("pyav").sample(path, seconds, **SHAPE).pixels,
    )


def test_what_is_asked_wrongly_is_said_at_once(film: tuple[Path, list[int]]) -> None:
    decoder = open_decoder("pyav")
    with pytest.raises(ValueError, match="must not shrink"):
        decoder.sample(film[0], [1.0, 0.5], **SHAPE)
    with pytest.raises(ValueError, match="fps"):
        next(decoder.stream(film[0], fps=0, **SHAPE))
    assert decoder.sample(film[0], [], **SHAPE).pixels.shape == (0, 32, 48, 3)
    wrong: list[dict] = [
        {"height": 0},
        {"width": -3},
        {"crop": (0, 0, 0, 0)},
        {"crop": (-1, 0, 9, 9)},
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="must be"):
            decoder.sample(film[0], [0.0], **SHAPE | each)
    for seconds in ([float("nan")], [0.0, float("inf")]):
        with pytest.raises(ValueError, match="finite"):
            decoder.sample(film[0], seconds, **SHAPE)
    for wrong_time in ({"fps": float("inf")}, {"fps": float("nan")}, {"end_seconds": float("inf")}):
        with pytest.raises(ValueError, match="finite"):
            next(decoder.stream(film[0], **{"fps": 8.0} | SHAPE | wrong_time))
    with pytest.raises(DecodeError, match="a file of 3 bytes"):
        decoder.probe(b"abc")
    with pytest.raises(ValueError, match="must be auto or one of pyav, decord, torchcodec"):
        open_decoder("opencv")  # type: ignore[arg-type]


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(
    film: tuple[Path, list[int]], tmp_path: Path
) -> None:
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{film[0]}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{film[0]}'\n"
    for name, content in (("a.m3u8", text), ("a.mp4", text), ("a.ffconcat", concat)):
        (tmp_path / name).write_text(content)
        with pytest.raises(DecodeError) as caught:
            open_decoder("pyav").probe(tmp_path / name)
        assert caught.value.kind == "open"


@pytest.mark.slow
def test_a_long_file_is_sampled_without_decoding_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samples a minute and a half apart, in a file of a key frame a second: two of its GOPs."""
    from pipeline.decode.container import OpenVideo

    num_decoded = 0
    play = OpenVideo.frames

    def counted(video):
        nonlocal num_decoded
        for each in play(video):
            num_decoded += 1
            yield each

    monkeypatch.setattr(OpenVideo, "frames", counted)
    options = {"crf": "20", "g": "24"}
    path = write_video(tmp_path / "a.mp4", greys(2400, 64, 64), options=options)
    frames = open_decoder("pyav").sample(path, [0.5, 95.5], height=64, width=64)
    assert [index_of(frame) for frame in frames.pixels] == [12, 2292 % 60]
    assert num_decoded < 60
