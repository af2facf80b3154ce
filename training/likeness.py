"""How alike clips are: error against an original, exact copies, the nearest among others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8

from training.judge import seen

_BATCH = 32


def mean_psnr(
    clips: UInt8[np.ndarray, "n t h w c"], originals: UInt8[np.ndarray, "n t h w c"]
) -> float:
    """Mean over clips of the PSNR in dB of each against its original."""
    errors = [
        np.square(clip.astype(np.float32) - original).mean()
        for clip, original in zip(clips, originals)
    ]
    return float(np.mean(_decibels(np.array(errors))))


def copy_share(codes: Int[np.ndarray, "n l"], known: Int[np.ndarray, "m l"]) -> float:
    """Share of code rows that equal a known row entirely."""
    rows = {row.tobytes() for row in known.astype(np.int64)}
    return float(np.mean([row.tobytes() in rows for row in codes.astype(np.int64)]))


def nearest(
    clips: UInt8[np.ndarray, "n t h w c"], others: UInt8[np.ndarray, "m t h w c"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each clip the other one with the least squared error, seen small, and its PSNR in dB."""
    vectors = [
        np.concatenate(
            [
                seen(group[at : at + _BATCH]).flatten(1).numpy()
                for at in range(0, len(group), _BATCH)
            ]
        )
        for group in (clips, others)
    ]
    lengths = [np.square(each).sum(axis=1) for each in vectors]
    distances = lengths[0][:, None] + lengths[1] - 2 * vectors[0] @ vectors[1].T
    found = distances.argmin(axis=1)
    least = np.maximum(distances[np.arange(len(found)), found], 0) / vectors[0].shape[1]
    return found, _decibels(least * 127.5**2)


def mean_color(frames: UInt8[np.ndarray, "n t h w c"]) -> UInt8[np.ndarray, "n t h w c"]:
    """Each clip as its one mean color: what a reconstruction must beat."""
    means = np.stack([clip.mean(axis=(0, 1, 2)) for clip in frames]).round().astype(np.uint8)
    return np.broadcast_to(means[:, None, None, None], frames.shape)


def _decibels(squared_error: np.ndarray) -> np.ndarray:
    """PSNR of errors on the scale of [0, 255]; an exact copy counts as 100 dB."""
    return 10 * np.log10(255**2 / np.maximum(squared_error, 255**2 * 1e-10))
