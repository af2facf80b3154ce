"""Blocks: a small frame as the mean colours of 16 x 9 tiles, 432 numbers.

Coarse enough that what moves a little changes them little, and cheap enough to compare each frame
with many others.
"""

from __future__ import annotations

import numpy as np

_CHUNK_FRAMES = 64  # temporary arrays stay in the cache
_TILE = 4


def block_means(frames: np.ndarray) -> np.ndarray:
    """float32 (n, 432), 0 to 255, of uint8 (n, 36, 64, 3) RGB."""
    num_frames, height, width, channels = frames.shape
    rows, columns = height // _TILE, width // _TILE
    means = np.empty((num_frames, rows * columns * channels), np.float32)
    for start in range(0, num_frames, _CHUNK_FRAMES):
        chunk = frames[start : start + _CHUNK_FRAMES]
        count = len(chunk)
        sums = chunk.reshape(count, rows, _TILE, width * channels).sum(axis=2, dtype=np.uint16)
        sums = sums.reshape(count, rows, columns, _TILE, channels).sum(axis=3, dtype=np.uint16)
        np.multiply(sums.reshape(count, -1), 1 / _TILE**2, out=means[start : start + count])
    return means
