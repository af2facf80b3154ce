"""Mutated files through the decoder: what runs in the process that may die of it."""

from __future__ import annotations

import io
import resource
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from pipeline.analysis import analyse
from pipeline.clip import Clip
from pipeline.config import BuildConfig
from pipeline.decode import open_decoder
from pipeline.decode.decoder import ClipRequest, DecodeLimits, DecodeSettings
from pipeline.decode.errors import DecodeError, Empty
from pipeline.decode.scan import gather_scan

LIMITS = DecodeLimits(
    max_pixels=1 << 22,
    max_frames=2000,
    max_seconds=3600,
    timeout_seconds=10,
    max_file_bytes=1 << 22,
)
LIMITS_OF_A_SOAK = DecodeLimits(max_pixels=1 << 22)
SEEDS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mp4", "libx264", {"crf": "30", "g": "5"}),
    ("mp4", "libx264", {"crf": "30", "g": "5", "movflags": "frag_keyframe+empty_moov"}),
    ("mov", "mpeg4", {}),
    ("matroska", "libx264", {"crf": "30"}),
    ("webm", "libvpx", {"deadline": "realtime"}),
    ("webm", "libvpx-vp9", {"deadline": "realtime"}),
    ("avi", "mjpeg", {}),
    ("mpegts", "mpeg2video", {}),
    ("mpegts", "libx264", {"crf": "30"}),
    ("mp4", "libx265", {"crf": "32", "x265-params": "log-level=none:frame-threads=1:pools=none"}),
    ("flv", "flv1", {}),
    ("gif", "gif", {}),
    ("still", "PNG", {}),
    ("still", "JPEG", {}),
    ("still", "WEBP", {}),
)


def seed_file(container_format: str, codec: str, options: dict[str, str]) -> bytes:
    """A small valid file: twelve frames of 64 x 48, or a still image."""
    target = io.BytesIO()
    generator = np.random.default_rng(0)
    if container_format == "still":
        still = Image.fromarray(generator.integers(0, 255, (32, 48, 3), dtype=np.uint8))
        still.save(target, codec, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
        return target.getvalue()
    muxing = {key: value for key, value in options.items() if key == "movflags"}
    with av.open(target, "w", format=container_format, options=muxing) as container:
        coding = {key: value for key, value in options.items() if key not in muxing}
        stream = container.add_stream(codec, rate=12, options=coding)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for index in range(12):
            pixels = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def mutated(content: bytes, key: int) -> bytes:
    """The file with some of its bytes changed, moved, cut out or put in, as the key says."""
    generator = np.random.default_rng(key)
    data = bytearray(content)
    for _ in range(1 + int(generator.integers(0, 8))):
        if not data:
            break
        at = int(generator.integers(0, len(data)))
        if generator.random() < 0.5:  # headers are a small part of a file and most of the danger
            at = int(generator.integers(0, min(len(data), 1024)))
        length = int(generator.choice([1, 1, 1, 2, 4, 8, 64]))
        kind = int(generator.integers(0, 7))
        if kind == 0:
            data[at] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            data[at : at + length] = generator.bytes(length)
        elif kind == 2:
            data[at : at + length] = b"\xff" * length
        elif kind == 3:
            data[at : at + length] = b"\x00" * length
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            other = int(generator.integers(0, len(data)))
            data[at:at] = data[other : other + length]
        else:
            value = int(generator.choice([0x7FFFFFFF, 0x80000000, 0xFFFF, 1 << 20]))
            data[at : at + 4] = value.to_bytes(4, "big")
    if generator.random() < 0.15:
        del data[int(generator.integers(0, len(data) + 1)) :]
    return bytes(data)


def decode_mutants(content: bytes, keys: range) -> dict[str, Any]:
    """How the passes over each mutant end, counted; and the keys of what ends as nothing typed."""
    ends: Counter[str] = Counter()
    untyped: list[tuple[int, str]] = []
    for key in keys:
        mutant = mutated(content, key)
        damage: Literal["raise", "prefix", "skip"] = ("raise", "prefix", "skip")[key % 3]
        settings = DecodeSettings(damage=damage, strict=key % 2 == 0)
        for run in (_scan, _stream, _clips, _annotate):
            try:
                run(open_decoder("pyav", LIMITS, settings), mutant)
                ends["decoded"] += 1
            except DecodeError as error:
                ends[error.kind] += 1
            except Exception as error:  # the test names it
                untyped.append((key, f"{run.__name__}: {type(error).__name__}: {error}"))
    return {"ends": dict(ends), "untyped": untyped}


def _scan(decoder: Any, mutant: bytes) -> None:
    before = None
    for each in decoder.scan(mutant):
        assert before is None or each.pts > before
        before = each.pts


def _stream(decoder: Any, mutant: bytes) -> None:
    decoder.probe(mutant)
    for count, frames in enumerate(
        decoder.stream(mutant, fps=8, height=16, width=16, end_seconds=4.0)
    ):
        assert frames.pixels.shape[1:] == (16, 16, 3)
        assert count < 100


def _clips(decoder: Any, mutant: bytes) -> None:
    probe = decoder.probe(mutant)
    second = probe.time_base[1] // probe.time_base[0]
    width, height = min(probe.width, 40), min(probe.height, 20)
    requests = [
        ClipRequest(
            start_pts=start,
            end_pts=start + second + 1,
            fps=8,
            num_frames=4,
            crop=(probe.width - width, probe.height - height, width, height),
            height=8,
            width=8,
        )
        for start in (0, second // 2, 5 * second)
    ]
    for clip in decoder.clips(mutant, requests):
        assert clip.shape == (4, 8, 8, 3)
    for frames in decoder.keyframes(mutant, height=8, width=8, max_frames=50):
        assert frames.pixels.shape == (1, 8, 8, 3)


def _annotate(decoder: Any, mutant: bytes) -> None:
    """What annotate does behind a screen: a bounded number of rows, whatever a file claims."""
    probe = decoder.probe(mutant)
    scan = gather_scan(decoder, mutant)
    if not len(scan.pts):
        raise scan.error or Empty("no frames")
    config = BuildConfig(sources=("mutant",), out="nowhere")
    template = Clip(clip_id="", source_id="0" * 64, uri="mutant")
    assert 0 < sum(1 for _ in analyse(template, probe, scan, config)) < 20_000


def open_many(media: list[Any], num_opens: int, first: int) -> tuple[int, int]:
    """Resident bytes after `first` opens of the files in turn, and after `num_opens`.

    Every third pass is abandoned after a frame, as when somebody has seen enough.
    """
    after_first = 0
    for index in range(num_opens):
        decoder = open_decoder("pyav", LIMITS_OF_A_SOAK, DecodeSettings())
        each = media[index % len(media)]
        try:
            decoder.probe(each)
            frames = decoder.stream(each, fps=4, height=32, width=32, end_seconds=1.0)
            next(frames, None) if index % 3 == 0 else list(frames)
            next(decoder.scan(each), None)
            list(decoder.keyframes(each, height=8, width=8, max_frames=2))
        except DecodeError:
            pass
        if index + 1 == first:
            after_first = _resident()
    return after_first, _resident()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
