"""Picture hashes: 192 bits of how a clip looks, near for near-duplicates.

The first, middle and last frame each give 64 bits: whether each cell of an 8 x 8 grid is darker
than its right neighbour (difference hash). Re-encoding, scaling and small changes of colour flip
few bits; other pictures differ in about half of them.
"""

from __future__ import annotations

import numpy as np

VERSION = 1
BITS = 192
_ROWS, _COLUMNS = 8, 9


def picture_hash(frames: np.ndarray) -> str:
    """48 hexadecimal digits of frames uint8 (n, h, w, 3), n >= 1, h >= 8, w >= 9."""
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]]
    luma = chosen @ np.array([0.299, 0.587, 0.114], np.float32)
    row_edges = np.linspace(0, luma.shape[1], _ROWS + 1).astype(int)[:-1]
    column_edges = np.linspace(0, luma.shape[2], _COLUMNS + 1).astype(int)[:-1]
    cells = np.add.reduceat(np.add.reduceat(luma, row_edges, axis=1), column_edges, axis=2)
    widths = np.diff(np.append(column_edges, luma.shape[2]))
    means = cells / widths
    return np.packbits((means[:, :, 1:] > means[:, :, :-1]).reshape(-1)).tobytes().hex()


def distances(hashes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Bits that differ, int [n, m], between hashes uint64 [n, 3] and [m, 3]."""
    return np.bitwise_count(hashes[:, None] ^ other[None]).sum(axis=2, dtype=np.int64)


def hash_words(hashes: list[str]) -> np.ndarray:
    """Hashes as uint64 [n, 3]."""
    raw = b"".join(bytes.fromhex(each) for each in hashes)
    return np.frombuffer(raw, dtype=">u8").astype(np.uint64).reshape(-1, 3)
