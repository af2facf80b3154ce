"""What a file may end in: one tree of errors, each with the class that a build's accounts name.

DecodeError
|-- CannotOpen          open
|-- NoVideo             no_video
|-- UnsupportedCodec    unsupported_codec
|-- TooLarge            too_large
|-- Corrupt             corrupt
|-- Empty               empty
`-- TimedOut            timeout
"""

from __future__ import annotations

from typing import ClassVar, Literal

DecodeErrorKind = Literal[
    "open", "no_video", "unsupported_codec", "too_large", "corrupt", "empty", "timeout"
]


class DecodeError(Exception):
    """A file that cannot be decoded, or not to its end: one of the classes below.

    `num_frames` is how many frames came out before; when the settings are strict, those are sound.
    `num_damaged` is how many packets were found damaged.
    """

    kind: ClassVar[DecodeErrorKind]

    def __init__(self, message: str, num_frames: int = 0, num_damaged: int = 0) -> None:
        super().__init__(message, num_frames, num_damaged)
        self.message = message
        self.num_frames = num_frames
        self.num_damaged = num_damaged

    def __str__(self) -> str:
        after = f" (after {self.num_frames} frames)" if self.num_frames else ""
        return f"{self.kind}: {self.message}{after}"


class CannotOpen(DecodeError):
    """Missing, unreadable, or in no format that is read."""

    kind = "open"


class NoVideo(DecodeError):
    """A media file without a picture stream."""

    kind = "no_video"


class UnsupportedCodec(DecodeError):
    """The decoder at hand cannot read this stream, or not rightly."""

    kind = "unsupported_codec"


class TooLarge(DecodeError):
    """Over a limit: pixels, seconds, frames or bytes."""

    kind = "too_large"


class Corrupt(DecodeError):
    """Damaged: what came before the damage is right."""

    kind = "corrupt"


class Empty(DecodeError):
    """It opens, but no frame comes out."""

    kind = "empty"


class TimedOut(DecodeError):
    """Over the time limit."""

    kind = "timeout"
