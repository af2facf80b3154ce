"""Which weights a detector has: asked for at the door, where torch is not loaded yet."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizer.settings import UserError


def weights_sha256(path: str | Path) -> str:
    """Of a file of weights; UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: the weights of TransNetV2 cannot be read ({error.strerror}); give another "
            "file with --shots.transnet_weights"
        ) from None
