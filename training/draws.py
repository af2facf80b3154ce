"""Random draws keyed by what they are for: (seed, purpose, step, ...), so that nothing is consumed.

A key gives the same draw on any rank, after any resume and in any order. Where torch offers no
generator argument (dropout), `seed_step` makes its global state a function of the key as well.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """63 bits from the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(key(*parts))


def torch_generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(key(*parts))


def seed_step(seed: int, position: int, rank: int, device: torch.device) -> None:
    """The global state of torch as a function of the position, for what draws from it.

    Not by `torch.manual_seed`, which keeps a stack trace for each kind of device there might be.
    """
    torch.default_generator.manual_seed(key(seed, "step", position, rank))
    if device.type == "cuda":
        torch.cuda.manual_seed(key(seed, "step", position, rank))
