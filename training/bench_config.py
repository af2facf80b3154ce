"""Settings of `tessera bench train`, torch-free: the model that is trained, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tokenizer.settings import setting

ON_CUDA: dict[str, Any] = {
    "depth": 24,
    "width": 1024,
    "heads": 8,
    "grid": (5, 16, 16),
    "batch_size": 32,
    "precision": "bfloat16",
    "compile": True,
    "dropped": 20,
    "steps": 50,
    "rounds": 2,
    "profiled_steps": 3,
}
"""What stands in for the defaults with `--device cuda`."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Training of a generator on random codes, beside a plain loop of the same model."""

    out: str | None = setting(None, "write the figures to this file too, as JSON")
    device: Literal["cpu", "cuda"] = setting("cpu", "where to train")
    method: Literal["raster", "nar", "arpg"] = setting("raster", "order of generation")
    condition: Literal["none", "class", "text"] = setting(
        "class", "what a clip is generated from: nothing, one of 101 classes, or a caption"
    )
    depth: int = setting(6, "number of blocks (default: 6; on cuda 24)")
    width: int = setting(384, "width of the transformer (default: 384; on cuda 1024)")
    heads: int = setting(6, "attention heads; must divide the width (default: 6; on cuda 8)")
    grid: tuple[int, int, int] = setting(
        (5, 8, 8),
        "latent frames, height and width of a clip; its product is the sequence (default: 5 x 8 x "
        "8, 320; on cuda 5 x 16 x 16, 1,280)",
    )
    codebook_size: int = setting(4096, "number of codes")
    batch_size: int = setting(4, "clips in a batch (default: 4; on cuda 32)")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "what is multiplied (default: float32; on cuda bfloat16)"
    )
    compile: bool = setting(False, "compile the blocks (default: false; on cuda true)")
    clips: int = setting(4096, "clips in the shards that are read")
    dropped: int = setting(2, "steps of a round before the timed ones (default: 2; on cuda 20)")
    steps: int = setting(6, "timed steps of a round (default: 6; on cuda 50)")
    rounds: int = setting(8, "rounds of both loops, one behind the other (default: 8; on cuda 2)")
    profiled_steps: int = setting(
        2, "steps of one more run, for what their time is spent on; 0: none (default: 2; on cuda 3)"
    )
    trace: str | None = setting(
        None, "keep the trace of those steps in this file (.json.gz), for Perfetto"
    )

    def __post_init__(self) -> None:
        names = ("depth", "width", "heads", "batch_size", "dropped", "steps", "rounds")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if min(self.grid) < 1 or self.grid[1] != self.grid[2]:
            raise ValueError(f"grid ({list(self.grid)}) must be t, h, w of at least 1, with h = w")
        if not 2 <= self.codebook_size <= 1 << 16:
            raise ValueError(f"codebook_size ({self.codebook_size}) must be 2 to 65536")
        if self.clips < self.batch_size:
            raise ValueError(f"clips ({self.clips}) must be at least batch_size")
        if self.profiled_steps < 0:
            raise ValueError(f"profiled_steps ({self.profiled_steps}) must not be negative")
        if self.trace is not None and not self.profiled_steps:
            raise ValueError("trace: there is none with profiled_steps 0")
