"""Decoding: any video or image file to frames chosen by presentation time.

passes      the decoder: what can be asked of a file
decoder     the records that go in and out, limits, settings, errors
sampling    which frame shows at which time, and clips filled from frames in order
reader      what a library must do: one open file and its frames
pyav        the default: FFmpeg inside this process, one thread
indexed     readers by index: decord and torchcodec, optional
images      jpg, png and webp as clips of one frame, whatever the library
container   a file as FFmpeg opens it: stream, limits, damage
picture     a frame to small upright RGB; hdr: its light
opening     the beginning of a video for one clip

decoder = open_decoder("pyav")
probe = decoder.probe("film.mp4")
for frames in decoder.stream("film.mp4", fps=8, height=128, width=128): ...
"""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias, get_args

from pipeline.decode.decoder import DecodeError, DecodeLimits, DecodeSettings, Media
from pipeline.decode.passes import Decoder
from pipeline.decode.reader import Reader, name_of

Library: TypeAlias = Literal["pyav", "decord", "torchcodec"]


def open_decoder(
    name: Library,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 (frozen)
    settings: DecodeSettings = DecodeSettings(damage="raise"),  # noqa: B008
) -> Decoder:
    """The decoder of the library called `name`; images are told by content, whatever their name."""
    if name not in get_args(Library):
        raise ValueError(f"decoder ({name!r}) must be one of {', '.join(get_args(Library))}")

    def scanner(media: Media) -> Reader[Any]:
        if _is_image(media, limits):
            from pipeline.decode.images import ImageReader

            return ImageReader(media, limits)
        from pipeline.decode.pyav import PyAVReader

        return PyAVReader(media, limits, settings)

    def reader(media: Media) -> Reader[Any]:
        if name == "pyav" or _is_image(media, limits):
            return scanner(media)
        from pipeline.decode.indexed import IndexedReader

        return IndexedReader(name, media, limits, settings)

    return Decoder(reader, scanner, raises=settings.damage == "raise")


def _is_image(media: Media, limits: DecodeLimits) -> bool:
    """Whether the first bytes are an image's; raises what is wrong with the file itself."""
    from pipeline.decode.images import is_image

    if isinstance(media, bytes):
        size_bytes, head = len(media), media[:16]
    else:
        try:
            size_bytes = os.path.getsize(media)
            with open(media, "rb") as file:
                head = file.read(16)
        except OSError as error:
            raise DecodeError("open", f"{media}: cannot be read ({error.strerror})") from None
    if size_bytes > limits.max_file_bytes:
        raise DecodeError(
            "too_large",
            f"{name_of(media)}: {size_bytes} bytes, more than max_file_bytes "
            f"({limits.max_file_bytes})",
        )
    return is_image(head)
