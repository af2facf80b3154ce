"""Decoding: any video or image file to frames chosen by presentation time.

decoder    what a decoder is: records, limits, errors, the protocol
sampling   which frame shows at which time, and clips filled from frames in order
pyav       the default: FFmpeg inside this process, one thread
decord     optional: the same frames for H.264 in mp4
opening    the beginning of a video for one clip
images     jpg, png and webp as clips of one frame, whatever the decoder

decoder = open_decoder("pyav", DecodeLimits())
probe = decoder.probe("film.mp4")
scan = gather_scan(decoder.scan("film.mp4"))
for frames in decoder.clips("film.mp4", requests): ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.decode.decoder import (
    ClipRequest,
    DecodeError,
    DecodeLimits,
    Decoder,
    Probe,
    ScanFrame,
)


def open_decoder(name: Literal["pyav", "decord"], limits: DecodeLimits) -> Decoder:
    """The decoder of videos called `name`; images are told by their content, not their name."""
    if name == "pyav":
        from pipeline.decode.pyav import PyAVDecoder

        return _ByContent(PyAVDecoder(limits), limits)
    if name == "decord":
        from pipeline.decode.decord import DecordDecoder

        return _ByContent(DecordDecoder(limits), limits)
    raise ValueError(f"decoder ({name!r}) must be pyav or decord")


class _ByContent:
    """Sends a file to the image decoder or to the video decoder, by its first bytes."""

    def __init__(self, videos: Decoder, limits: DecodeLimits) -> None:
        self._videos = videos
        self._limits = limits

    def probe(self, path: str | Path) -> Probe:
        return self._for(path).probe(path)

    def scan(self, path: str | Path) -> Iterator[ScanFrame]:
        return self._for(path).scan(path)

    def clips(self, path: str | Path, requests: Sequence[ClipRequest]) -> Iterator[np.ndarray]:
        return self._for(path).clips(path, requests)

    def _for(self, path: str | Path) -> Decoder:
        from pipeline.decode.images import ImageDecoder, is_image

        try:
            size_bytes = os.path.getsize(path)
            with open(path, "rb") as file:
                head = file.read(16)
        except OSError as error:
            raise DecodeError("open", f"{path}: cannot be read ({error.strerror})") from None
        if size_bytes > self._limits.max_file_bytes:
            raise DecodeError(
                "too_large",
                f"{path}: {size_bytes} bytes, more than max_file_bytes "
                f"({self._limits.max_file_bytes})",
            )
        return ImageDecoder(self._limits) if is_image(head) else self._videos
