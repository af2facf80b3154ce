"""How alike clips are: exact copies in codes, and the nearest clip in pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8

from training.judge import seen

_BATCH = 32


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


def _decibels(squared_error: np.ndarray) -> np.ndarray:
    """PSNR of errors on the scale of [0, 255]; an exact copy counts as 100 dB."""
    return 10 * np.log10(255**2 / np.maximum(squared_error, 255**2 * 1e-10))
