"""torchcodec as a table of frames: the machine's own FFmpeg, on a GPU where there is one.

It is the optional extra `torchcodec`, and needs FFmpeg's libraries (4 to 8) on the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.decode.decoder import Media
from pipeline.decode.indexed import LibraryError, failure
from tokenizer.settings import UserError

_ERRORS = (RuntimeError, ValueError, IndexError, OSError)


class TorchCodecTable:
    """A file whose frames torchcodec counts; each must begin when PyAV says."""

    def __init__(self, media: Media, stream_index: int) -> None:
        video_decoder = load_torchcodec()
        import torch

        try:
            self._decoder: Any = video_decoder(
                media if isinstance(media, bytes) else str(media),
                stream_index=stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        except _ERRORS as error:
            raise failure(error) from None

    def frame(self, index: int, seconds: float) -> np.ndarray:
        try:
            frame = self._decoder.get_frame_at(index)
        except _ERRORS as error:
            raise failure(error) from None
        if abs(frame.pts_seconds - seconds) > 1e-3 + 1e-6 * abs(seconds):
            raise LibraryError(
                f"shows the frame of {frame.pts_seconds:.6f} s where PyAV has one at "
                f"{seconds:.6f} s",
                is_refusal=True,
            )
        return frame.data.cpu().numpy()


def load_torchcodec() -> Any:
    """torchcodec's VideoDecoder; UserError where it or FFmpeg's libraries are missing."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"decoder: torchcodec cannot be loaded ({reason}); pip install 'tessera[torchcodec]' "
            "and FFmpeg's libraries (such as Debian's package ffmpeg), or choose pyav"
        ) from None
    return VideoDecoder


def has_gpu_decoder() -> bool:
    """Whether torchcodec can be loaded here, beside a GPU."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        load_torchcodec()
    except UserError:
        return False
    return True
