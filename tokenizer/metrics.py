"""How near a reconstruction is to its source.

Conventions, because figures differ otherwise. Every measure is taken of uint8 pixels, frame by
frame, averaged over the frames of a clip; what is reported is then the mean over clips.

    psnr            10 log10(255^2 / MSE) of a frame, all three channels together, at most 100 dB
    temporal_psnr   the same of the error's change from frame to frame: flicker and stutter
    ssim            Wang et al. (2004), per channel, Gaussian window of 11 pixels
    ms_ssim         Wang, Simoncelli and Bovik (2003), of as many resolutions as fit: `similarity`
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tokenizer import similarity

BEST_PSNR = 100.0
"""What an exact frame counts as, in dB."""
VALUES_AT_ONCE = 1 << 17
"""Of frames whose structure is compared together. On a CPU a float64 convolution writes each value
out eleven times; what all clips of a batch need at once is memory from the system at every call,
which took two thirds of an evaluation."""


def psnr(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, the mean over the frames of each clip; float64."""
    return frame_psnr(frames, reference).mean(dim=1)


def frame_psnr(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, "b t"]:
    """Peak signal-to-noise ratio of each frame in dB, float64, at most `BEST_PSNR`."""
    return _decibels(frames.double() - reference.double())


def temporal_psnr(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """PSNR of the differences between consecutive frames, the mean over each clip; float64.

    A reconstruction that is off by a constant has the best there is; one that repeats frames, or
    flickers, has a bad one. ValueError for single frames, which have no differences.
    """
    if frames.shape[1] < 2:
        raise ValueError("a single frame has no differences between frames")
    return _decibels((frames.double() - reference.double()).diff(dim=1)).mean(dim=1)


def mean_color(frames: UInt8[Tensor, "b t h w c"]) -> UInt8[Tensor, "b t h w c"]:
    """Each clip as one flat colour: the reconstruction that knows nothing else."""
    flat = frames.double().mean(dim=(1, 2, 3), keepdim=True).round().to(torch.uint8)
    return flat.expand_as(frames)


def ssim(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """Structural similarity, up to 1, the mean over the frames and channels of each clip; float64.

    ValueError when a side has fewer than 11 pixels.
    """
    return _by_frames(similarity.ssim, frames, reference)


def ms_ssim(
    frames: UInt8[Tensor, "b t h w c"], reference: UInt8[Tensor, "b t h w c"]
) -> Float[Tensor, " b"]:
    """Structural similarity over several resolutions, the mean over frames; float64, up to 1.

    ValueError when a side has fewer than 11 pixels.
    """
    return _by_frames(similarity.ms_ssim, frames, reference)


def _by_frames(
    measure: Callable[..., Float[Tensor, " n"]],
    frames: UInt8[Tensor, "b t h w c"],
    reference: UInt8[Tensor, "b t h w c"],
) -> Float[Tensor, " b"]:
    """A measure of single frames, a few at a time, and its mean over each clip."""
    count = max(1, VALUES_AT_ONCE // prod(frames.shape[2:]))
    pairs = zip(*(each.flatten(0, 1)[:, None].split(count) for each in (frames, reference)))
    values = [measure(_signal(a), _signal(b), value_range=255.0) for a, b in pairs]
    return torch.cat(values).view(frames.shape[:2]).mean(dim=1)


def _decibels(error: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t"]:
    squared = error.square().flatten(2).mean(dim=2)
    return (10 * torch.log10(255**2 / squared)).clamp(max=BEST_PSNR)


def _signal(frames: UInt8[Tensor, "b t h w c"]) -> Float[Tensor, "b c t h w"]:
    return frames.movedim(-1, 1).double()
