"""Chunks: a file that has no index is passed over once, however many chunks its clips are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import feed
from pipeline.clip import Clip
from pipeline.decode import DecoderRecipe, open_decoder
from pipeline.decode.decoder import ClipRequest, DecodeLimits, DecodeSettings
from pipeline.decode.passes import Decoder
from pipeline.executor.feeder import Feeder
from pipeline.feed import Chunk, Decoded, clips_in_order, decode_alone, decode_chunk, make_chunks
from pipeline.isolation import Death, Expendable
from pipeline.plan import PlannedSource
from pipeline.tokenize import ClipUnit
from tests.conftest import write_mp4

RECIPE = DecoderRecipe("pyav", DecodeLimits(), DecodeSettings())
NUM_CLIPS, CLIP_FRAMES = 12, 8


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PlannedSource]:
    folder = tmp_path_factory.mktemp("films")
    rows = {}
    for seed, name in enumerate(["a.ts", "b.ts", "c.mp4"]):
        blocks = np.random.default_rng(seed).integers(0, 255, (NUM_CLIPS * CLIP_FRAMES, 8, 8, 3))
        write_mp4(folder / name, blocks.astype(np.uint8).repeat(8, 1).repeat(8, 2))
        rows[name] = PlannedSource(
            source_id=name, uri=name, location=str(folder / name), kind="video"
        )
    return rows


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of clips that decoders were asked for."""
    asked: list[int] = []
    clips = Decoder.clips

    def counted(self: Decoder, media: Path, requests: list[ClipRequest]) -> Iterator[np.ndarray]:
        asked.append(len(requests))
        return clips(self, media, requests)

    monkeypatch.setattr(Decoder, "clips", counted)
    monkeypatch.setattr(feed._OPEN, "last", None)
    yield asked
    feed._OPEN.last = None


def chunks_of(films: dict[str, PlannedSource], *names: str, size: int = 4) -> list[Chunk]:
    clips, requests = [], []
    for name in names:
        decoder = open_decoder(*RECIPE)
        first = next(decoder.scan(films[name].location)).pts
        span = decoder.probe(films[name].location).time_base[1] * CLIP_FRAMES // 24
        for number in range(NUM_CLIPS):
            begin = first + number * span
            requests.append(
                ClipRequest(
                    start_pts=begin,
                    end_pts=begin + span,
                    fps=24.0,
                    num_frames=CLIP_FRAMES,
                    crop=(0, 0, 64, 64),
                    height=32,
                    width=32,
                )
            )
            clips.append(Clip(clip_id=f"{name} {number}", source_id=name, uri=name))
    return make_chunks(clips, requests, films, RECIPE, size)


def alone(chunk: Chunk) -> tuple[np.ndarray, ...]:
    """The clips of a chunk when no other was decoded before."""
    return _frames(decode_chunk(replace(chunk, later=())))


def _frames(decoded: Decoded) -> tuple[np.ndarray, ...]:
    assert decoded.error is None
    return decoded.clips


def assert_equal(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        np.testing.assert_array_equal(one, other)


def test_chunks_that_follow_each_other_are_one_pass(
    films: dict[str, PlannedSource], passes: list[int]
) -> None:
    chunks = chunks_of(films, "a.ts", "b.ts", "c.mp4")
    assert [len(chunk.later) for chunk in chunks] == [8, 4, 0, 8, 4, 0, 0, 0, 0]
    found = [_frames(decode_chunk(chunk)) for chunk in chunks]
    assert passes == [12, 12, 4, 4, 4]
    assert feed._OPEN.last is None
    for clips, chunk in zip(found, chunks):
        assert_equal(clips, alone(chunk))
    shown = [frames for clips in found for frames in clips]
    assert len({frames.tobytes() for frames in shown}) == len(shown)  # all differ


def test_chunks_in_any_order_and_process_are_the_same(
    films: dict[str, PlannedSource], passes: list[int]
) -> None:
    chunks = chunks_of(films, "a.ts", "b.ts")
    for place in (0, 2, 1, 3, 1, 2, 4, 5, 0, 3, 4):
        assert_equal(_frames(decode_chunk(chunks[place])), alone(chunks[place]))
    assert all(len(chunk.later) for chunk in chunks[:2])


def test_a_file_that_was_open_too_long_is_opened_anew(
    films: dict[str, PlannedSource], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.decode.container.time.monotonic", lambda: clock[0])
    first, second, _ = chunks_of(films, "a.ts")
    decode_chunk(first)
    clock[0] += 2 * RECIPE.limits.timeout_seconds  # the encoder was busy
    assert_equal(_frames(decode_chunk(second)), alone(second))
    assert passes[:2] == [12, 8]


def test_no_frame_is_guessed_where_time_ran_out(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of frames at 0, 100, 110, 120, ... ms the second does not last as long as the first."""
    clock = [0.0]
    monkeypatch.setattr("pipeline.decode.container.time.monotonic", lambda: clock[0])
    times = [0, *range(100, 200, 10)]
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=100, options={"tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number, time in enumerate(times):
            pixels = np.full((32, 32, 3), 40 + 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    first = next(open_decoder(*RECIPE).scan(tmp_path / "a.ts")).pts
    chunk = Chunk(str(tmp_path / "a.ts"), "a", tuple(tiny(first, ms) for ms in (0, 105)), RECIPE)
    one, two = (
        replace(each, later=chunk.requests[n:]) for n, each in enumerate(chunk.singles(), 1)
    )
    right = alone(two)
    assert len({int(frame.mean()) for frame in right[0]}) == 3
    assert_equal(_frames(decode_chunk(one)), alone(one))
    decode_chunk(one)
    clock[0] += 2 * RECIPE.limits.timeout_seconds
    assert_equal(_frames(decode_chunk(two)), right)


def tiny(first: int, milliseconds: int) -> ClipRequest:
    """Three frames, 10 ms apart."""
    start = first + 90 * milliseconds
    return ClipRequest(
        start_pts=start,
        end_pts=start + 90 * 30,
        fps=100.0,
        num_frames=3,
        crop=(0, 0, 32, 32),
        height=8,
        width=8,
    )


def test_clips_behind_a_deadly_one_are_not_decoded_from_the_start_each(
    films: dict[str, PlannedSource],
) -> None:
    (chunk,) = chunks_of(films, "a.ts", size=NUM_CLIPS)
    singles = replace(chunk, later=chunk.requests[:2]).singles()
    assert [len(single.later) for single in singles] == list(range(NUM_CLIPS + 1, 1, -1))
    assert all(len(single.requests) == 1 for single in singles)
    assert [single.later for single in chunk.singles()] == [()] * NUM_CLIPS


def test_the_next_chunk_is_decoded_alone_as_well(films: dict[str, PlannedSource]) -> None:
    chunks = chunks_of(films, "a.ts")
    with Expendable(memory_bytes=1 << 30) as process:
        found = [decode_alone(chunk, process, 60) for chunk in chunks]
    assert not any(isinstance(each, Death) for each in found)
    assert len({each.pid for each in found}) == 1
    for each, chunk in zip(found, chunks):
        assert_equal(each.clips, alone(chunk))


def test_a_chunk_that_goes_on_waits_for_the_one_before(
    films: dict[str, PlannedSource],
) -> None:
    chunks = chunks_of(films, "a.ts", "c.mp4", "b.ts", size=3)
    in_flight: Counter[str] = Counter()
    most: Counter[str] = Counter()
    together: list[int] = []

    def submit(chunk: Chunk) -> Chunk:
        in_flight[chunk.source_id] += 1
        most[chunk.source_id] = max(most[chunk.source_id], in_flight[chunk.source_id])
        together.append(in_flight.total())
        return chunk

    def collect(ticket: Chunk, chunk: Chunk) -> Decoded:
        in_flight[chunk.source_id] -= 1
        return Decoded(tuple(np.zeros(1) for _ in chunk.requests), None, 0)

    feeder: Feeder[Chunk] = Feeder(submit, collect, limit_bytes=1 << 30)
    with feeder.turn(ClipUnit("unit", (), tuple(chunks))) as clips:
        assert len(list(clips)) == 3 * NUM_CLIPS
    assert most == {"a.ts": 1, "c.mp4": NUM_CLIPS // 3, "b.ts": 1}
    assert max(together) == 1 + NUM_CLIPS // 3 + 1  # files do not wait for each other


def test_a_unit_whose_chunks_cannot_be_submitted_keeps_no_other_waiting(
    films: dict[str, PlannedSource],
) -> None:
    def submit(chunk: Chunk) -> Chunk:
        if chunk.source_id == "a.ts":
            raise ConnectionError("no workers")
        return chunk

    def collect(ticket: Chunk, chunk: Chunk) -> Decoded:
        return Decoded(tuple(np.zeros(1) for _ in chunk.requests), None, 0)

    feeder: Feeder[Chunk] = Feeder(submit, collect, limit_bytes=1 << 30)
    with (
        pytest.raises(ConnectionError),
        feeder.turn(ClipUnit("bad", (), tuple(chunks_of(films, "a.ts")))),
    ):
        pass
    with feeder.turn(ClipUnit("good", (), tuple(chunks_of(films, "b.ts")))) as clips:
        assert len(list(clips)) == NUM_CLIPS


def test_an_error_ends_the_clips_of_its_chunk_and_no_stream_is_kept(
    films: dict[str, PlannedSource], passes: list[int]
) -> None:
    chunks = [replace(chunk, location="gone.ts") for chunk in chunks_of(films, "a.ts")]
    outcomes = [error for _, error, _ in clips_in_order(chunks, map(decode_chunk, chunks))]
    assert outcomes == ["open"] * NUM_CLIPS
    assert feed._OPEN.last is None
