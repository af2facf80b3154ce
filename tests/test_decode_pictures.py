"""Pictures that are not plain: wide pixels, two fields, ten bits, HDR, transparency, odd sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decode import open_decoder
from pipeline.decode.decoder import ClipRequest, DecodeLimits, DecodeSettings
from pipeline.decode.errors import DecodeError
from pipeline.decode.hdr import light_to_pq, pq_to_light, tone_map
from tests.fuzz_decoding import seed_file

LIMITS = DecodeLimits()


def encode(
    path: Path,
    pictures: Sequence[av.VideoFrame],
    codec: str,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Frames of one format as they are, at 24 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options or {})
        first = pictures[0]
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        context = stream.codec_context
        context.color_trc, context.color_primaries = first.color_trc, first.color_primaries
        context.colorspace, context.color_range = first.colorspace, first.color_range
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        for index, picture in enumerate(pictures):
            picture.pts, picture.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def rgb(pixels: np.ndarray, pixel_format: str) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)


def first_frame(path: Path, height: int, width: int, crop: Any = None, **settings: Any) -> Any:
    decoder = open_decoder("pyav", LIMITS, DecodeSettings(**settings))
    return decoder.sample(path, [0.0], height=height, width=width, crop=crop).pixels[0]


def test_wide_pixels_are_shown_wide_and_crops_are_of_what_is_shown(tmp_path: Path) -> None:
    columns = np.zeros((48, 64, 3), np.uint8)
    columns[:, 32:] = 200
    path = encode(
        tmp_path / "a.mp4", [rgb(columns, "yuv444p")] * 3, "libx264", {"crf": "1"}, Fraction(3, 2)
    )
    probe = open_decoder("pyav").probe(path)
    assert (probe.width, probe.height, probe.stored_width) == (96, 48, 64)
    assert probe.pixel_aspect == 1.5
    whole = first_frame(path, 48, 96)
    assert abs(int(whole[20, 40].mean()) - 0) < 3
    assert abs(int(whole[20, 56].mean()) - 200) < 3
    right = first_frame(path, 48, 48, crop=(48, 0, 48, 48))
    assert right[:, 2:].min() > 190
    left = first_frame(path, 48, 42, crop=(3, 0, 42, 48))
    assert left.max() < 12
    with pytest.raises(DecodeError, match="does not hold the crop"):
        first_frame(path, 48, 48, crop=(49, 0, 48, 48))


@pytest.mark.parametrize(("aspect", "width"), [((1, 9), 64), ((65, 64), 64), ((8, 9), 57)])
def test_nonsense_and_rounding_in_the_aspect_of_pixels_are_ignored(
    aspect: tuple[int, int], width: int, tmp_path: Path
) -> None:
    grey = rgb(np.full((48, 64, 3), 90, np.uint8), "yuv420p")
    path = encode(tmp_path / "a.mp4", [grey] * 2, "libx264", aspect=Fraction(*aspect))
    assert open_decoder("pyav").probe(path).width == width


def test_of_two_fields_the_first_is_shown_and_woven_ones_on_demand(tmp_path: Path) -> None:
    combed = np.full((64, 64, 3), 40, np.uint8)
    combed[1::2] = 200  # the second field shows a later, brighter moment
    options = {"crf": "1", "x264-params": "tff=1"}
    path = encode(tmp_path / "a.mp4", [rgb(combed, "yuv420p")] * 4, "libx264", options)
    assert open_decoder("pyav").probe(path).interlaced
    for height, width, crop in ((64, 64, None), (32, 16, None), (20, 20, (3, 7, 33, 41))):
        field = first_frame(path, height, width, crop)
        assert np.abs(field.astype(int) - 40).max() <= 6
    woven = first_frame(path, 64, 64, interlaced="weave")
    assert np.abs(woven[1::2].astype(int) - 200).max() <= 6
    small = first_frame(path, 16, 16, interlaced="weave").astype(int)  # swscale keeps fields apart
    assert {small.min() // 100, small.max() // 100} == {0, 2}


def test_a_field_shows_the_same_place_as_the_whole_frame(tmp_path: Path) -> None:
    rows = np.zeros((64, 64, 3), np.uint8)
    rows[32:] = 200
    options = {"crf": "1", "x264-params": "tff=1"}
    path = encode(tmp_path / "a.mp4", [rgb(rows, "yuv420p")] * 4, "libx264", options)
    assert first_frame(path, 16, 16, (0, 34, 64, 30)).min() > 190
    assert first_frame(path, 16, 16, (0, 0, 64, 30)).max() < 12


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_libraries_that_cannot_show_it_plainly_refuse(
    name: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "torchcodec":
        request.getfixturevalue("torchcodec")
    grey = rgb(np.full((48, 64, 3), 90, np.uint8), "yuv420p")
    options = {"x264-params": "tff=1"}
    fields = encode(tmp_path / "a.mp4", [grey] * 4, "libx264", options)
    wide = encode(tmp_path / "b.mp4", [grey] * 4, "libx264", aspect=Fraction(3, 2))
    for path, reason in ((fields, "interlaced"), (wide, "pixels as square")):
        with pytest.raises(DecodeError, match=reason) as caught:
            open_decoder(name).probe(path)
        assert caught.value.kind == "unsupported_codec"


def hdr_film(path: Path, code: int, transfer: int) -> Path:
    """Flat grey of a 10-bit luma code (64 to 940), BT.2020."""
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(frame.planes, (code, 512, 512)):
        line = np.full(plane.line_size // 2, value, np.uint16)
        plane.update(np.tile(line, plane.height).tobytes())
    frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
    frame.color_range = 1
    params = f"lossless=1:log-level=none:colorprim=9:transfer={transfer}:colormatrix=9"
    params += ":bframes=0:frame-threads=1:pools=none"  # threads may tell no timestamp
    return encode(path, [frame] * 2, "libx265", {"x265-params": params})


@pytest.mark.parametrize(("transfer", "name"), [(16, "pq"), (18, "hlg")])
def test_hdr_becomes_standard_range_and_greys_stay_grey(
    transfer: int, name: str, tmp_path: Path
) -> None:
    shown = []
    for code in (64, 300, 502, 600, 769, 940):
        path = hdr_film(tmp_path / f"{code}.mkv", code, transfer)
        probe = open_decoder("pyav").probe(path)
        assert (probe.transfer, probe.bit_depth) == (name, 10)
        pixels = first_frame(path, 16, 16).reshape(-1, 3).astype(int)
        assert (pixels.max(axis=1) - pixels.min(axis=1)).max() <= 1
        shown.append(int(pixels[0, 1]))
        plain = first_frame(path, 16, 16, hdr="plain")
        assert abs(int(plain[0, 0, 1]) - round(255 * (code - 64) / 876)) <= 1
    assert shown[0] == 0
    assert shown == sorted(shown)
    assert len(set(shown)) == len(shown) or name == "pq"  # above 1000 cd/m2 PQ is white
    assert shown[-1] == 255


def test_tone_mapping_keeps_the_dark_and_bends_the_bright() -> None:
    """BT.2390's knee, worked out by hand: below it light is kept, the peak becomes white."""
    light = np.array([0.0, 1.0, 26.0, 80.0, 203.0, 1000.0, 10_000.0])
    codes = np.rint(65535 * light_to_pq(light)).astype(np.uint16)
    shown = tone_map(np.repeat(codes, 3).reshape(1, -1, 3), "pq")[0, :, 0] / 255
    back = 203 * shown**2.4
    assert back[:4] == pytest.approx(light[:4], rel=0.05, abs=0.01)
    assert 100 < back[4] < 160  # reference white is below white, to leave room for what is brighter
    assert back[5] == pytest.approx(203)
    assert back[6] == pytest.approx(203)
    assert pq_to_light(light_to_pq(light)) == pytest.approx(light, rel=1e-6, abs=1e-6)
    assert light_to_pq(np.array(100.0)) == pytest.approx(0.508078, abs=1e-5)  # ST 2084


def test_transparency_is_blended_with_black_in_videos_as_in_images(tmp_path: Path) -> None:
    rgba = np.full((48, 64, 4), 200, np.uint8)
    rgba[:, :32, 3], rgba[:, 32:, 3] = 255, 0
    picture = av.VideoFrame.from_ndarray(rgba, format="rgba")
    path = encode(tmp_path / "a.mov", [picture] * 2, "png")
    assert open_decoder("pyav").probe(path).alpha == "blended"
    pixels = first_frame(path, 48, 64)
    assert (pixels[:, :32] == 200).all()
    assert (pixels[:, 32:] == 0).all()


def test_odd_sizes_and_ten_bits_come_at_any_size(tmp_path: Path) -> None:
    ramp = np.linspace(0, 250, 71).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (53, 71, 3))
    path = encode(tmp_path / "a.mp4", [rgb(pixels.copy(), "yuv444p10le")] * 2, "libx264")
    probe = open_decoder("pyav").probe(path)
    assert (probe.width, probe.height, probe.bit_depth) == (71, 53, 10)
    for height, width in ((53, 71), (1, 1), (17, 31), (200, 301)):
        shown = first_frame(path, height, width)
        assert shown.shape == (height, width, 3)
        middle = shown[height // 2, :, 1].astype(int)
        expected = np.interp((np.arange(width) + 0.5) * 71 / width - 0.5, np.arange(71), ramp)
        assert np.abs(middle - expected).max() <= 6


def test_a_crop_of_one_pixel_and_one_of_everything_are_crops(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    noise = generator.integers(0, 255, (36, 52, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mov", [rgb(noise, "rgb24")] * 2, "png")
    np.testing.assert_array_equal(first_frame(path, 36, 52), noise)
    np.testing.assert_array_equal(first_frame(path, 36, 52, (0, 0, 52, 36)), noise)
    for x, y in ((0, 0), (51, 35), (17, 30)):
        np.testing.assert_array_equal(first_frame(path, 1, 1, (x, y, 1, 1))[0, 0], noise[y, x])
    asked = ClipRequest(
        start_pts=0, end_pts=99, fps=1, num_frames=1, crop=(5, 6, 30, 20), height=20, width=30
    )
    clip = next(open_decoder("pyav").clips(path, [asked]))
    np.testing.assert_array_equal(clip[0], noise[6:26, 5:35])


@pytest.mark.parametrize(
    "seed",
    [
        *[("gif", "gif", {}), ("avi", "mjpeg", {}), ("avi", "mpeg4", {}), ("matroska", "ffv1", {})],
        *[("webp", "lossy", {}), ("webp", "lossless", {}), ("webp", "alpha", {})],
    ],
    ids=lambda seed: "-".join(seed[:2]),
)
def test_a_picture_over_the_limit_is_refused_by_what_its_header_says(
    seed: tuple[str, str, dict[str, str]],
) -> None:
    if seed[0] == "webp":
        target = io.BytesIO()
        still = Image.new("RGBA" if seed[1] == "alpha" else "RGB", (64, 48))
        still.save(target, "WEBP", lossless=seed[1] == "lossless")
        content = target.getvalue()
    else:
        content = seed_file(*seed)
    assert open_decoder("pyav").probe(content).width == 64
    limits = DecodeLimits(max_pixels=64 * 48 - 1)
    with pytest.raises(DecodeError, match="64x48 is over max_pixels") as caught:
        open_decoder("pyav", limits).probe(content)
    assert caught.value.kind == "too_large"


def test_colours_that_are_not_converted_are_named(tmp_path: Path) -> None:
    picture = rgb(np.full((48, 64, 3), 90, np.uint8), "yuv420p")
    picture.colorspace = 8  # YCgCo
    path = encode(tmp_path / "a.mp4", [picture], "libx264")
    with pytest.raises(DecodeError, match="yuv420p, colour space 8 are not converted") as caught:
        list(open_decoder("pyav").scan(path))
    assert caught.value.kind == "unsupported_codec"


def test_a_library_is_not_asked_for_times_that_come_twice() -> None:
    film = seed_file("mpegts", "libx264", {"crf": "30"})
    assert open_decoder("pyav").probe(2 * film).width == 64
    with pytest.raises(DecodeError, match="its clock begins anew") as caught:
        open_decoder("decord").probe(2 * film)
    assert caught.value.kind == "unsupported_codec"
