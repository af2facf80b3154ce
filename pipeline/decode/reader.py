"""What a reader is: one open file whose frames can be asked for; the decoder does the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.decode.decoder import Media, Probe, View
from pipeline.decode.errors import DecodeError
from pipeline.decode.sampling import Shown

Frame = TypeVar("Frame")


class PlayedFrame(NamedTuple, Generic[Frame]):
    """A decoded frame; `follows_damage`: frames between it and the one before are lost."""

    pts: int
    frame: Frame
    follows_damage: bool


class Reader(Protocol[Frame]):
    """A file that is open, at its start; each of its passes begins there and is made once.

    Every method raises DecodeError. `damage` is what the passes met and went past.
    """

    @property
    def time_base(self) -> tuple[int, int]: ...

    @property
    def step_pts(self) -> int:
        """A nominal frame in ticks."""

    @property
    def damage(self) -> DecodeError | None: ...

    def close(self) -> None: ...

    def probe(self) -> Probe:
        """Decodes the first frame."""

    def start_pts(self) -> int:
        """The first frame's pts."""

    def show(self, wanted: Callable[[], int | None]) -> Iterator[Shown[Frame]]:
        """The frame on display at `wanted()`, which is asked again after each, until it is None.

        `wanted` does not shrink, and is at or behind a shown frame's end once that was taken. The
        first frame shows at earlier times too; the last one has no end.
        """

    def picture(self, frame: Frame, view: View) -> np.ndarray:
        """uint8 (height, width, 3) RGB; (height, width) where the view is grey."""


class Scanner(Reader[Frame], Protocol[Frame]):
    """A reader that goes through a whole file."""

    def frames(self) -> Iterator[PlayedFrame[Frame]]:
        """Every frame, with strictly growing pts."""

    def key_frames(self) -> Iterator[PlayedFrame[Frame]]:
        """The frames that are coded without others."""


def name_of(media: Media) -> str:
    """What errors call a file."""
    return f"a file of {len(media)} bytes" if isinstance(media, bytes) else str(media)
