"""Float32 as it is written: where a code is chosen, no autocast and no TF32.

with exact_float32("cuda"):
    scores = vectors @ codes.T
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Switches autocast off and, on CUDA, TF32 in convolutions (cuDNN's default) and products."""
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":
            yield
            return
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        switches = convolutions, torch.backends.cuda.matmul
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, before):
                switch.fp32_precision = precision
