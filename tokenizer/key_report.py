"""A published checkpoint against the model it should be of: whole, or one error that names all.

check_keys(path, {"head.weight": [64, 48]}, tensors)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from tokenizer.settings import UserError


class CheckpointMismatch(UserError):
    """A checkpoint that is not of the model it should be; holds every key that is wrong."""

    def __init__(
        self, path: Path, missing: list[str], unexpected: list[str], misshaped: list[str]
    ) -> None:
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        named = (("missing", missing), ("unexpected", unexpected), ("of another kind", misshaped))
        parts = [f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in named if keys]
        super().__init__(f"{path}: nothing was loaded; {'; '.join(parts)}")


def check_keys(
    path: Path, expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]
) -> None:
    """CheckpointMismatch unless `found` has exactly these keys, with numbers of these shapes."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshaped = [
        f"{key} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)} instead of "
        f"{list(expected[key])}"
        for key, value in found.items()
        if key in expected
        and (list(value.shape) != list(expected[key]) or not value.dtype.is_floating_point)
    ]
    if missing or unexpected or misshaped:
        raise CheckpointMismatch(path, missing, unexpected, misshaped)
