"""Decoding: any video or image file to frames chosen by presentation time.

passes      the decoder: what can be asked of a file
decoder     the records that go in and out, limits, settings
errors      what a file may end in
scan        every frame of a file, small, for shots and scores
sampling    which frame shows at which time, and clips filled from frames in order
reader      what a library must do: one open file and its frames
pyav        the default: FFmpeg inside this process, one thread
indexed     readers by index: decord and torchcodec, optional
images      jpg, png and webp as clips of one frame, whatever the library; stills tells them
container   a file as FFmpeg opens it: stream, limits, damage
packets     its frames' times without decoding; h264: where decoding may begin
picture     a frame to small upright RGB; hdr: its light
opening     the beginning of a video for one clip

decoder = open_decoder("pyav")
probe = decoder.probe("film.mp4")
for frames in decoder.stream("film.mp4", fps=8, height=128, width=128): ...
"""

from __future__ import annotations

import io
import os
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Media
from pipeline.decode.errors import CannotOpen, TooLarge
from pipeline.decode.passes import Decoder
from pipeline.decode.reader import Reader, Scanner, name_of
from pipeline.decode.stills import is_still
from tokenizer.settings import to_dict

Library: TypeAlias = Literal["pyav", "decord", "torchcodec"]

VERSION = 4
"""Grows whenever the same file and settings give other frames or pixels."""


class DecoderRecipe(NamedTuple):
    """What a decoder is made of: `open_decoder(*recipe)`; travels between processes."""

    name: Library
    limits: DecodeLimits
    settings: DecodeSettings

    def preload(self) -> tuple[str, ...]:
        """Modules that take much memory, whatever is decoded."""
        return ("torchcodec.decoders",) if self.name == "torchcodec" else ()

    def facts(self) -> dict[str, Any]:
        """What frames and pixels depend on besides the file and the limits, for fingerprints."""
        return {"library": self.name, "version": VERSION, **to_dict(self.settings)}


def open_decoder(
    name: Library | Literal["auto"] = "pyav",
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 (frozen)
    settings: DecodeSettings = DecodeSettings(damage="raise"),  # noqa: B008
) -> Decoder:
    """The decoder of the library called `name`; images are told by content, whatever their name."""
    if name == "auto":
        name = resolve_library(name)
    if name not in get_args(Library):
        raise ValueError(
            f"decoder ({name!r}) must be auto or one of {', '.join(get_args(Library))}"
        )

    def scanner(media: Media) -> Scanner[Any]:
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

    keeps_damaged = settings.damage != "raise" and name == "pyav"
    return Decoder(reader, scanner, limits.max_seconds, keeps_damaged=keeps_damaged)


def resolve_library(name: Literal["pyav", "decord", "torchcodec", "auto"]) -> Library:
    """The library that a setting names: `auto` is torchcodec where it has a GPU, else pyav.

    UserError where torchcodec is named and cannot be loaded.
    """
    if name == "torchcodec":
        from pipeline.decode.torchcodec import load_torchcodec

        load_torchcodec()
    if name == "auto":
        from pipeline.decode.torchcodec import has_gpu_decoder

        return "torchcodec" if has_gpu_decoder() else "pyav"
    return name


def _is_image(media: Media, limits: DecodeLimits) -> bool:
    """Whether it is a still image by its content; raises what is wrong with the file itself."""
    try:
        with io.BytesIO(media) if isinstance(media, bytes) else open(media, "rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            found = is_still(file)
    except OSError as error:
        raise CannotOpen(f"{name_of(media)}: cannot be read ({error.strerror})") from None
    if size_bytes > limits.max_file_bytes:
        raise TooLarge(
            f"{name_of(media)}: {size_bytes} bytes, more than max_file_bytes "
            f"({limits.max_file_bytes})",
        )
    return found
