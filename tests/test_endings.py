"""Endings of videos: what a folder is searched for is what the decoder reads."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import open_decoder
from pipeline.sources.endings import VIDEO_ENDINGS
from pipeline.sources.listing import list_sources
from tests.conftest import moving_square

WRITTEN = {
    "mov": ("mpeg4", ".3g2 .3gp .f4v .m4v .mov .mp4 .qt"),
    "matroska": ("libvpx", ".mkv .webm"),
    "avi": ("mpeg4", ".avi .divx"),
    "asf": ("wmv2", ".asf .wmv"),
    "flv": ("flv", ".flv"),
    "ogg": ("libvpx", ".ogm .ogv"),
    "mpegts": ("mpeg2video", ".m2t .m2ts .mts .ts"),
    "mpeg": ("mpeg1video", ".mpe .mpeg .mpg"),
    "vob": ("mpeg2video", ".vob"),
    "mpeg1video": ("mpeg1video", ".m1v"),
    "mpeg2video": ("mpeg2video", ".m2v"),
    "mxf": ("mpeg2video", ".mxf"),
    "ivf": ("libvpx", ".ivf"),
    "h264": ("libx264", ".264 .h264"),
    "hevc": ("libx265", ".265 .h265 .hevc"),
    "dv": ("dvvideo", ".dv"),
}
"""FFmpeg's format with a codec for it, and the endings that such files have."""


@pytest.mark.parametrize("written", WRITTEN)
def test_a_folder_gives_files_of_every_ending_and_each_is_decoded(
    tmp_path: Path, written: str
) -> None:
    codec, endings = WRITTEN[written]
    content = write(tmp_path / "film", written, codec)
    for ending in endings.split():
        (tmp_path / f"a{ending}").write_bytes(content)
        (file,) = list_sources([str(tmp_path)])
        stream = open_decoder("pyav").scan(file.location)
        assert len(list(stream)) == 5
        (tmp_path / f"a{ending}").unlink()


def test_every_ending_is_tried() -> None:
    tried = [ending for _, endings in WRITTEN.values() for ending in endings.split()]
    assert sorted(tried) == sorted(VIDEO_ENDINGS)


def write(path: Path, written: str, codec: str) -> bytes:
    """Five frames."""
    height, width = (576, 720) if written == "dv" else (64, 64)
    with av.open(str(path), "w", format=written) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        for small in moving_square(5, 1):
            frame = np.resize(small, (height, width, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path.read_bytes()
