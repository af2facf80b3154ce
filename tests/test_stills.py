"""What is a still image and what a film, told by content."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decode import open_decoder
from pipeline.decode.errors import TooLarge
from pipeline.decode.stills import is_still


def jpeg(level: int, size: int = 16, **more: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(file, "JPEG", **more)
    return file.getvalue()


def with_segment(content: bytes, marker: int, payload: bytes) -> bytes:
    length = (len(payload) + 2).to_bytes(2, "big")
    return content[:2] + bytes([0xFF, marker]) + length + payload + content[2:]


def still(content: bytes) -> bool:
    return is_still(io.BytesIO(content))


@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_one_behind_the_other_are_a_film(progressive: bool, tmp_path: Path) -> None:
    frames = [jpeg(level, progressive=progressive) for level in (10, 90, 170)]
    assert [still(each) for each in frames] == [True] * 3
    assert not still(b"".join(frames))
    assert not still(b"\xff\xd8\xff\xff" + frames[0][3:] + frames[1])  # padded
    path = tmp_path / "film.mjpeg"
    path.write_bytes(b"".join(frames))
    assert len(list(open_decoder("pyav").scan(path))) == 3
    assert open_decoder("pyav").probe(path).kind == "video"


def test_a_photo_with_other_pictures_in_it_is_a_still() -> None:
    assert still(with_segment(jpeg(9), 0xE1, b"Exif\0\0" + jpeg(8) + jpeg(7)))  # thumbnails
    assert still(with_segment(jpeg(9), 0xE2, b"MPF\0II*\0") + jpeg(8))  # of two lenses
    assert still(jpeg(9) + b"\0\0\0\x18ftypmp42")  # with a film behind it
    assert still(jpeg(9) + jpeg(9, size=8))  # with a preview behind it


@pytest.mark.parametrize("cut", [2, 3, 5, 20, 200])
def test_a_cut_jpeg_is_no_film(cut: int) -> None:
    assert still(jpeg(9)[: max(cut, 3)])


def test_other_images_are_told_by_their_first_bytes() -> None:
    for kind in ("PNG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, kind)
        assert still(file.getvalue())
    assert not still(b"")
    assert not still(b"RIFF\0\0\0\0AVI LIST")


def test_a_frame_that_lasts_for_years_is_refused(tmp_path: Path) -> None:
    """An AVI whose header says so: one frame of ours would be millions of windows."""
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuvj420p"
        for level in (10, 90):
            pixels = np.full((32, 32, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    scale = content.index(b"strh") + 8 + 20  # dwScale: ticks of a frame, dwRate: ticks a second
    content[scale : scale + 8] = (2**31 - 1).to_bytes(4, "little") + (1).to_bytes(4, "little")
    with pytest.raises(TooLarge, match="a frame lasts"):
        open_decoder("pyav").probe(bytes(content))
