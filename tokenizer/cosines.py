"""Block cosines: the fixed transform from which a video autoencoder starts.

A clip's blocks of t x s x s pixels are dominated by a few slow cosines (that is why JPEG works), so
an autoencoder that begins with them reconstructs from its first step, and spends its training on
what a linear code cannot say.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float

OPPONENT_COLORS = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
"""Brightness, red against blue, green against both: about what decorrelates pictures."""
TIME_COST = 3
"""A cosine over time ranks with one of three times its frequency over space."""


def block_cosines(time: int, side: int, count: int) -> Float[np.ndarray, "count n"]:
    """`count` orthonormal rows over flat blocks of 3 x time x side x side, slowest first."""
    if count > 3 * time * side**2:
        raise ValueError(f"a block of {3 * time * side**2} values has no {count} channels")
    sides = range(min(side, count))
    frequencies = sorted(
        product(range(3), range(min(time, count)), sides, sides),
        key=lambda f: f[0] + TIME_COST * f[1] + f[2] + f[3],
    )
    colors = np.array(OPPONENT_COLORS, np.float64)
    colors /= np.linalg.norm(colors, axis=1, keepdims=True)
    over_time, over_side = _cosines(time), _cosines(side)
    rows = [
        np.einsum("c,t,h,w->cthw", colors[c], over_time[t], over_side[h], over_side[w]).ravel()
        for c, t, h, w in frequencies[:count]
    ]
    return np.stack(rows)


def _cosines(size: int) -> Float[np.ndarray, "size size"]:
    """The orthonormal cosine transform (DCT-II), a frequency per row."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * frequency * (2 * position + 1) / (2 * size))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
