"""What a checkpoint holds, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from training.tensor_parts import read_tensors, stored_tensors


def checkpoint_tensors(checkpoint: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors in one piece, by name behind `prefix`: of the model, optimizers and averages."""
    tensors = {
        name: torch.empty(each.shape, dtype=each.dtype)
        for name, each in stored_tensors(checkpoint).items()
        if name.startswith(prefix)
    }
    read_tensors(checkpoint, tensors)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}
