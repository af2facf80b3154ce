"""decord (0.6.0, FFmpeg 4.1) as a table of frames: H.264 alone, the only codec it gets right.

It decodes ahead without bound: prefer PyAV for long videos and for files of strangers.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from pipeline.decode.decoder import Media, Probe
from pipeline.decode.indexed import LibraryError, failure


class DecordTable:
    """A file whose frames decord counts; `seconds` are those that its packets have, by pts.

    `refreshes` says that a jump may land where pictures are not whole yet.
    """

    def __init__(self, media: Media, probe: Probe, seconds: np.ndarray, refreshes: bool) -> None:
        import decord

        if probe.codec != "h264":
            raise LibraryError(f"is used for h264 only, not {probe.codec}", is_refusal=True)
        if refreshes:
            raise LibraryError("jumps to pictures that are not whole yet", is_refusal=True)
        if probe.num_frames is not None and probe.num_frames > 2 * len(seconds) + 1000:
            raise LibraryError(
                f"reserves memory for the {probe.num_frames} frames that the header claims, and "
                f"there are {len(seconds)}",
                is_refusal=True,
            )
        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, RuntimeError, AssertionError)
        file = io.BytesIO(media) if isinstance(media, bytes) else str(media)
        try:
            self._reader: Any = decord.VideoReader(file, num_threads=1)
            seen = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except self._errors as error:
            raise failure(error) from None
        if len(seen) != len(seconds) or not np.allclose(
            seen - seen[0], seconds - seconds[0], rtol=1e-5, atol=2e-3
        ):
            raise LibraryError(
                f"sees {len(seen)} frames at other times than the {len(seconds)} of PyAV",
                is_refusal=True,
            )

    def frame(self, index: int, seconds: float) -> np.ndarray:
        try:
            self._reader.seek_accurate(index)
            frame = self._reader.next().asnumpy()
        except self._errors as error:
            raise failure(error) from None
        except StopIteration:
            raise LibraryError("ends early") from None
        height, width = frame.shape[:2]
        rows = frame.reshape(height, -1)[:, : 3 * width]  # small pictures come with padded rows
        return rows.reshape(height, width, 3)
