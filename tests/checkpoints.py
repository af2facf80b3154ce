"""What a checkpoint holds, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from training.checkpoint import latest_checkpoint
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


def latest_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Those of a run's latest checkpoint."""
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return checkpoint_tensors(checkpoint)


def assert_same_state(found: Path, expected: Path) -> None:
    """The latest checkpoints of two runs are alike, bit for bit."""
    ours, theirs = latest_tensors(found), latest_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
