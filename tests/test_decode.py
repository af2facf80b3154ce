"""Decoding: frames by time, equal to a slow full decode; odd, broken and hostile files."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decode import open_decoder
from pipeline.decode.decoder import ClipRequest, DecodeLimits, DecodeSettings
from pipeline.decode.errors import DecodeError, DecodeErrorKind
from pipeline.decode.sampling import display_pts
from pipeline.decode.scan import gather_scan

LIMITS = DecodeLimits()
MS = Fraction(1, 1000)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    pts: Sequence[int] | None = None,
    clock: Fraction = Fraction(1, 12288),
    rate: int = 24,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
) -> Path:
    """A video of uint8 RGB frames at the given pts in `clock`; by default at `rate`."""
    step = Fraction(1, rate) / clock
    pts = [int(k * step) for k in range(len(frames))] if pts is None else pts
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = stream.time_base = clock
        stream.codec_context.thread_count = 1
        for frame, time in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, clock
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def greys(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Flat frames whose brightness is their index: 4 levels each, so coding cannot confuse them."""
    return [np.full((height, width, 3), 10 + 4 * (k % 60), np.uint8) for k in range(count)]


def index_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 10) / 4)


def request(start: int, end: int, fps: float = 8.0, num_frames: int = 9, **shape) -> ClipRequest:
    height, width = shape.get("height", 32), shape.get("width", 48)
    crop = shape.get("crop", (0, 0, 48, 32))
    return ClipRequest(
        start_pts=start,
        end_pts=end,
        fps=fps,
        num_frames=num_frames,
        crop=crop,
        height=height,
        width=width,
    )


def shown(pts: Sequence[int], asked: ClipRequest, clock: Fraction) -> list[int]:
    """The slow twin: for each time the last frame that began before or at it."""
    indices = []
    for k in range(asked.num_frames):
        time = asked.start_pts + Fraction(k) / Fraction(asked.fps).limit_denominator(1000) / clock
        if clock <= MS:
            time = (time + Fraction(1, 2)).__floor__()
        time = min(time, asked.end_pts - 1)
        indices.append(max([i for i, p in enumerate(pts) if p <= time], default=0))
    return indices


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_a_clip_shows_the_last_frame_at_or_before_each_time(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    steps = generator.choice([200, 512, 513, 900, 3000], 55)
    pts = [12288, *(12288 + np.cumsum(steps)).tolist()]  # variable rate, does not start at zero
    clock = Fraction(1, 12288)
    path = write_video(tmp_path / "a.mp4", greys(56), pts)
    decoder = open_decoder(name, LIMITS)
    assert gather_scan(decoder, path).pts.tolist() == pts
    end = pts[-1] + 1
    requests = [
        request(pts[0], end, fps=8, num_frames=30),
        request(pts[3], pts[20], fps=24, num_frames=9),
        request(pts[10] + 7, pts[11], fps=30, num_frames=5),
        request(pts[10] + 7, end, fps=29.97, num_frames=12),
        request(pts[-2], end, fps=8, num_frames=3),
    ]
    clips = list(decoder.clips(path, requests))
    assert len(clips) == len(requests)
    for asked, clip in zip(requests, clips):
        assert clip.shape == (asked.num_frames, 32, 48, 3)
        assert [index_of(frame) for frame in clip] == shown(pts, asked, clock)


def test_no_frame_of_a_clip_lies_at_or_behind_its_end() -> None:
    asked = request(0, 1000, fps=8, num_frames=20)
    assert max(display_pts(asked, (1, 1000))) == 999


def test_times_are_rounded_as_the_container_rounds_them() -> None:
    # 24 fps in milliseconds: 0 42 83 125 ...; without rounding frame 1 would come out as frame 0.
    asked = request(0, 10_000, fps=24, num_frames=4)
    assert display_pts(asked, (1, 1000)) == [0, 42, 83, 125]
    # In a clock of one tick a frame, rounding up would show a frame too soon.
    assert display_pts(request(0, 100, fps=10, num_frames=4), (1, 24)) == [0, 2, 4, 7]


@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi", "ts"])
def test_clips_far_apart_equal_clips_of_one_long_pass(extension: str, tmp_path: Path) -> None:
    frames = [np.roll(g, k, axis=1) for k, g in enumerate(greys(300))]
    for k, frame in enumerate(frames):
        frame[4:20, 4:20] = (37 * k) % 256
    options = {"crf": "10", "g": "24", "bf": "2"}
    path = write_video(tmp_path / f"a.{extension}", frames, clock=Fraction(1, 24), options=options)
    decoder = open_decoder("pyav", LIMITS)
    pts = gather_scan(decoder, path).pts
    assert len(pts) == 300
    starts = pts[[10, 100, 101, 180, 290]]
    requests = [request(int(start), int(pts[-1]) + 1, num_frames=3) for start in starts]
    everything = request(int(pts[0]), int(pts[-1]) + 1, fps=24, num_frames=300)
    together = list(decoder.clips(path, requests))
    with_all = list(decoder.clips(path, [everything, *requests]))[1:]
    alone = [next(iter(decoder.clips(path, [each]))) for each in requests]
    for one, two, three in zip(together, with_all, alone, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_clips_come_in_the_order_given_and_only_once_each(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(48))
    long, short = request(0, 30_000, num_frames=12), request(512, 3000, num_frames=2)
    clips = list(open_decoder("pyav", LIMITS).clips(path, [long, short]))
    assert [len(clip) for clip in clips] == [12, 2]
    assert list(open_decoder("pyav", LIMITS).clips(path, [])) == []


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_applied_to_scans_crops_and_sizes(angle: int, tmp_path: Path) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:] = (240, 30, 30), (30, 240, 30)
    picture[16:, :24], picture[16:, 24:] = (30, 30, 240), (240, 240, 240)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.set_display_rotation(angle)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        turns = next(container.decode(video=0)).rotation // 90 % 4
    upright = np.rot90(picture, turns).astype(int)
    height, width = upright.shape[:2]
    for name in ("pyav", "decord"):
        decoder = open_decoder(name, LIMITS)
        probe = decoder.probe(path)
        assert (probe.rotation, probe.width, probe.height) == (90 * turns, width, height)
        whole = request(0, 9, crop=(0, 0, width, height), height=height, width=width, num_frames=1)
        part = request(0, 9, crop=(4, 2, width - 8, 8), height=8, width=width - 8, num_frames=1)
        first, second = decoder.clips(path, [whole, part])
        assert np.abs(first[0] - upright).mean() < 12
        np.testing.assert_array_equal(second[0], first[0][2:10, 4 : width - 4])
        small = next(iter(decoder.scan(path))).frame
        corners = small[[3, 3, -4, -4], [3, -4, 3, -4]]
        wanted = upright[[3, 3, -4, -4], [3, -4, 3, -4]]
        assert np.abs(corners - wanted).max() < 40


def test_crop_and_resize_are_one_area_filter(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (16, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = write_video(tmp_path / "a.mp4", [noise] * 3, options={"crf": "1"})
    asked = request(0, 9, crop=(16, 32, 96, 64), height=8, width=12, num_frames=1)
    clip = next(iter(open_decoder("pyav", LIMITS).clips(path, [asked])))[0]
    averaged = noise[32:96, 16:112].reshape(8, 8, 12, 8, 3).mean((1, 3))
    assert np.abs(clip - averaged).mean() < 9  # with swscale's default chroma it is 35
    odd = request(0, 9, crop=(3, 5, 51, 37), height=37, width=51, num_frames=1)
    clip = next(iter(open_decoder("pyav", LIMITS).clips(path, [odd])))[0]
    assert np.abs(clip.mean(2) - noise[5:42, 3:54].mean(2)).mean() < 12


def test_both_decoders_give_equal_pixels_of_h264_at_native_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    frames = [generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
    options = {"crf": "20", "bf": "3", "g": "12"}
    path = write_video(tmp_path / "a.mp4", frames, options=options)
    shape = {"crop": (0, 0, 64, 64), "height": 64, "width": 64}
    requests = [request(0, 10_000, **shape), request(5000, 20_000, **shape)]
    halves = [request(0, 10_000, crop=(0, 0, 64, 64), height=32, width=32)]
    ours, theirs = (open_decoder(name, LIMITS) for name in ("pyav", "decord"))
    for one, two in zip(ours.clips(path, requests), theirs.clips(path, requests), strict=True):
        np.testing.assert_array_equal(one, two)
    one, two = (next(iter(decoder.clips(path, halves))) for decoder in (ours, theirs))
    assert np.abs(one.astype(int) - two).mean() < 8  # noise is the worst case
    one, two = gather_scan(ours, path), gather_scan(theirs, path)
    np.testing.assert_array_equal(one.frames, two.frames)


def test_decord_refuses_what_it_would_get_wrong(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(5), codec="mpeg4", options={})
    with pytest.raises(DecodeError, match="h264 only") as caught:
        open_decoder("decord", LIMITS).probe(path)
    assert caught.value.kind == "unsupported_codec"


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_a_damaged_file_ends_in_corrupt_and_conceals_nothing(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(60)]
    whole = write_video(tmp_path / "a.mp4", frames)
    content = bytearray(whole.read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle : middle + 4000] = generator.bytes(4000)
    damaged = tmp_path / "b.mp4"
    damaged.write_bytes(content)
    decoder = open_decoder(name, LIMITS, DecodeSettings())
    scan = gather_scan(decoder, damaged)
    assert scan.error is not None
    assert scan.error.kind == "corrupt"
    if name == "decord":
        assert len(scan.pts) == 0
        return
    assert 10 < len(scan.pts) == scan.error.num_frames < 60
    np.testing.assert_array_equal(scan.frames, gather_scan(decoder, whole).frames[: len(scan.pts)])
    assert set(scan.grey_pts) <= set(scan.pts)
    last = int(scan.pts[-1])
    shape = {"crop": (0, 0, 64, 64), "height": 64, "width": 64}
    before = request(0, last + 512, fps=24, num_frames=len(scan.pts), **shape)
    behind = request(last - 512, last + 4096, fps=24, num_frames=8, **shape)
    clips = decoder.clips(damaged, [before, behind])
    np.testing.assert_array_equal(next(clips), next(decoder.clips(whole, [before])))
    with pytest.raises(StopIteration):
        next(clips)
    assert decoder.damage is not None
    assert decoder.damage.kind == "corrupt"
    clips = open_decoder(name, LIMITS).clips(damaged, [before, behind])
    next(clips)
    with pytest.raises(DecodeError, match="corrupt"):
        next(clips)


def test_limits_end_a_file_with_their_own_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(48))
    for limits, kind, said in [
        (DecodeLimits(max_pixels=1000), "too_large", "48x32 is over max_pixels"),
        (DecodeLimits(max_frames=20), "too_large", "max_frames"),
        (DecodeLimits(max_seconds=1.0), "too_large", "max_seconds"),
        (DecodeLimits(max_file_bytes=100), "too_large", "max_file_bytes"),
        (DecodeLimits(timeout_seconds=1e-9), "timeout", "timeout_seconds"),
    ]:
        error = gather_scan_error(open_decoder("pyav", limits), path)
        assert (error.kind, said in str(error)) == (kind, True), error
    with pytest.raises(ValueError, match="max_pixels"):
        DecodeLimits(max_pixels=0)


def gather_scan_error(decoder, path: Path) -> DecodeError:
    try:
        error = gather_scan(decoder, path).error
    except DecodeError as caught:
        error = caught
    assert error is not None
    return error


@pytest.mark.parametrize("kind", DecodeError.__subclasses__())
def test_errors_travel_between_processes(kind: type[DecodeError]) -> None:
    error = kind("a.mp4: bad", 7, 2)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == f"{kind.kind}: a.mp4: bad (after 7 frames)"
    assert (copy.num_frames, copy.num_damaged) == (7, 2)


def test_every_class_has_an_error() -> None:
    kinds = [error.kind for error in DecodeError.__subclasses__()]
    assert sorted(kinds) == sorted(get_args(DecodeErrorKind))


@pytest.mark.parametrize("extension", ["png", "webp", "jpg"])
def test_an_image_is_a_clip_of_one_frame(extension: str, tmp_path: Path) -> None:
    picture = greys(1, 40, 60)[0]
    picture[:20] += 100
    path = tmp_path / f"a.{extension}"
    Image.fromarray(picture).save(path, quality=100)
    for name in ("pyav", "decord"):
        decoder = open_decoder(name, LIMITS)
        probe = decoder.probe(path)
        assert (probe.kind, probe.width, probe.height, probe.num_frames) == ("image", 60, 40, 1)
        assert probe.time_base == (1, 1)
        scan = gather_scan(decoder, path)
        assert scan.pts.tolist() == [0]
        asked = request(0, 1, num_frames=1, crop=(10, 0, 40, 40), height=20, width=20)
        (clip,) = decoder.clips(path, [asked])
        assert clip.shape == (1, 20, 20, 3)
        assert abs(int(clip[0, :10].mean()) - 110) <= 2
        assert abs(int(clip[0, 10:].mean()) - 10) <= 2


def test_an_image_is_told_by_its_content_and_turned_upright(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise to be displayed
    path = tmp_path / "named.mp4"
    Image.fromarray(picture).save(path, format="JPEG", quality=95, exif=exif)
    decoder = open_decoder("pyav", LIMITS)
    probe = decoder.probe(path)
    assert (probe.kind, probe.width, probe.height, probe.rotation) == ("image", 20, 40, 270)
    asked = request(0, 1, num_frames=1, crop=(0, 0, 20, 40), height=40, width=20)
    (clip,) = decoder.clips(path, [asked])
    assert clip[0, :18].min() > 200
    assert clip[0, 22:].max() < 50


def test_sixteen_bits_grey_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    decoder = open_decoder("pyav", LIMITS)
    asked = request(0, 1, num_frames=1, crop=(0, 0, 8, 8), height=8, width=8)

    def pixel(image: Image.Image) -> list[int]:
        image.save(tmp_path / "a.png")
        return next(iter(decoder.clips(tmp_path / "a.png", [asked])))[0, 4, 4].tolist()

    assert pixel(Image.fromarray(np.full((8, 8), 257 * 99, np.uint16))) == [99, 99, 99]
    assert pixel(Image.new("RGBA", (8, 8), (200, 100, 50, 0))) == [0, 0, 0]
    assert pixel(Image.new("RGBA", (8, 8), (200, 100, 50, 255))) == [200, 100, 50]
    assert pixel(Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)) == [200, 100, 50]
    assert pixel(Image.new("1", (8, 8), 1)) == [255, 255, 255]


def test_broken_and_huge_images_have_their_class(tmp_path: Path) -> None:
    decoder = open_decoder("pyav", LIMITS)
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    cut = tmp_path / "cut.png"
    cut.write_bytes(buffer.getvalue()[:5000])
    assert gather_scan_error(decoder, cut).kind == "corrupt"
    (tmp_path / "head.jpg").write_bytes(b"\xff\xd8\xff" + b"no picture" * 9)
    assert gather_scan_error(decoder, tmp_path / "head.jpg").kind == "open"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b""))
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert gather_scan_error(decoder, tmp_path / "bomb.png").kind == "too_large"
    assert gather_scan_error(decoder, tmp_path / "none.png").kind == "open"


def test_only_what_is_shown_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that nobody needs is decoded, and nothing else; what it costs, bench-decode says."""
    from pipeline.decode import picture

    made: list[tuple[int, int]] = []
    convert = picture.to_pixels

    def counted(reformatter, frame, height, width, *rest):
        made.append((height, width))
        return convert(reformatter, frame, height, width, *rest)

    monkeypatch.setattr(picture, "to_pixels", counted)
    path = write_video(tmp_path / "a.mp4", greys(48, 64, 64))
    decoder = open_decoder("pyav", LIMITS)
    twice = [
        request(0, 10**6, num_frames=n, crop=(0, 0, 64, 64), height=8, width=8) for n in (9, 3)
    ]
    list(decoder.clips(path, twice))
    assert made == [(8, 8)] * 12
    made.clear()
    list(decoder.scan(path))
    assert (made.count((36, 64)), made.count((72, 128)), len(made)) == (48, 16, 64)


@pytest.mark.slow
def test_closed_files_leak_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(4))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    decoder = open_decoder("pyav", LIMITS)

    def open_some() -> int:
        for _ in range(100):
            next(decoder.scan(path))  # abandoned after one frame
            assert gather_scan_error(decoder, text).kind == "open"
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    open_some()
    assert open_some() - open_some() <= 0
    before = len(list(Path("/proc/self/fd").iterdir()))
    open_some()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_greys_are_the_frames_on_display_at_each_eighth_of_a_second(
    name: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(1)
    steps = generator.choice([200, 512, 513, 900, 3000], 55)
    pts = [12288, *(12288 + np.cumsum(steps)).tolist()]
    path = write_video(tmp_path / "a.mp4", greys(56), pts)
    scan = gather_scan(open_decoder(name, LIMITS), path)
    times = np.arange(pts[0], pts[-1], 12288 / 8)
    expected = sorted({max(p for p in pts if p <= time) for time in times})
    assert scan.grey_pts[scan.grey_pts < pts[-1]].tolist() == expected
    luma = scan.frames[np.isin(scan.pts, scan.grey_pts)].mean(axis=(1, 2, 3))
    assert scan.greys.shape == (len(scan.grey_pts), 72, 128)
    np.testing.assert_allclose(scan.greys.mean(axis=(1, 2)), luma, atol=2)


@pytest.mark.parametrize("angle", [0, 90, -90, 180])
def test_greys_are_turned_upright(angle: int, tmp_path: Path) -> None:
    frame = np.full((90, 160, 3), 16, np.uint8)
    frame[:40, :40] = 200
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 90, 160, "yuv420p"
        stream.set_display_rotation(angle)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    scan = gather_scan(open_decoder("pyav", LIMITS), path)
    small = scan.frames[0].mean(axis=-1)
    np.testing.assert_allclose(scan.greys[0].reshape(36, 2, 64, 2).mean(axis=(1, 3)), small, atol=6)


def test_an_image_has_one_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 30, 3), 77, np.uint8)).save(tmp_path / "a.png")
    scan = gather_scan(open_decoder("pyav", LIMITS), tmp_path / "a.png")
    assert scan.grey_pts.tolist() == [0]
    np.testing.assert_allclose(scan.greys, np.full((1, 72, 128), 77), atol=2)
