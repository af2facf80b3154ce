"""Key packets of H.264: a picture that is coded alone, or one that is whole only after a while."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import open_decoder
from pipeline.decode.decoder import DecodeLimits, DecodeSettings
from pipeline.decode.errors import UnsupportedCodec
from pipeline.decode.h264 import has_idr
from pipeline.decode.packets import read_packets
from tests.conftest import moving_square

AVCC = bytes([1, 100, 0, 12, 0xFF])


def write(path: Path, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in moving_square(48, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    ("options", "refreshes"),
    [
        ({"g": "12", "bf": "2"}, False),
        ({"g": "12", "x264-params": "intra-refresh=1"}, True),
        ({"g": "12", "bf": "2", "x264-params": "open-gop=1"}, True),
    ],
)
def test_pictures_that_are_refreshed_are_told_from_those_coded_alone(
    ending: str, options: dict[str, str], refreshes: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / f"film.{ending}", options)
    packets = read_packets(path, DecodeLimits(), DecodeSettings())
    assert packets.refreshes == refreshes
    assert len(packets.pts) == 48
    assert bool(np.all(np.diff(packets.pts) > 0))


@pytest.mark.parametrize(
    ("packet", "extradata", "expected"),
    [
        (b"\0\0\0\2\x65\x88\0\0\0\1\x06", AVCC, True),
        (b"\0\0\0\2\x06\x88\0\0\0\2\x41\0", AVCC, False),
        (b"\0\0\0\1\x65\0\0\1\x41", b"", True),
        (b"\0\0\1\x06\x05\0\0\1\x41\x9a", b"", False),
        (b"\xff\xff\xff\xff\x41", AVCC, False),  # a length beyond the end
        (b"\0\0\0\0" * 1000, AVCC, False),
        (b"\0\0\1", b"", False),
        (b"", AVCC, False),
        (b"", b"", False),
    ],
)
def test_units_are_found_by_length_or_start_code(
    packet: bytes, extradata: bytes, expected: bool
) -> None:
    assert has_idr(packet, extradata) == expected


def test_decord_is_not_used_where_it_would_show_half_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = write(tmp_path / "film.mp4", {"g": "12", "x264-params": "intra-refresh=1"})
    with pytest.raises(UnsupportedCodec, match="pictures that are not whole yet"):
        open_decoder("decord").sample(path, [1.0], height=64, width=64)
    whole = write(tmp_path / "whole.mp4", {"g": "12"})
    assert len(open_decoder("decord").sample(whole, [1.0], height=64, width=64).pixels) == 1
