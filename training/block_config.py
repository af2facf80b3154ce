"""What a transformer block is made of, as data: ours by default, and those of published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block: x + attention(norm(x)), then x + mlp(norm(x))."""

    norm: Literal["layer", "rms"] = setting("layer", "normalisation before attention and MLP")
    norm_eps: float = setting(1e-6, "added to the variance there")
    mlp: Literal["swiglu", "gelu_tanh"] = setting("swiglu", "kind of MLP")
    mlp_ratio: float = setting(
        4.0, "parameters of the MLP: those of two matrices width x ratio*width"
    )
    mlp_multiple: int = setting(32, "swiglu: its hidden width is rounded up to a multiple of this")
    qk_norm: Literal["none", "norm", "l2"] = setting(
        "norm",
        "queries and keys per head: as they are, normalised like the rest, or of length one with a "
        "learned factor per head (VAR)",
    )
    attention_scale: float = setting(
        1.0, "factor on the scores beside 1 / sqrt(head width); with qk_norm l2 the only one"
    )
    position: Literal["table", "rope"] = setting(
        "table", "where a row stands: a learned vector per cell, or rotated queries and keys"
    )
    rope_base: float = setting(10000.0, "rope: wavelengths are powers of this")
    rope_outside: Literal["still", "zero"] = setting(
        "still", "rope: rows outside of the grid are not rotated, or have no scores (LlamaGen)"
    )
    condition: Literal["add", "start", "adaln", "shared_adaln"] = setting(
        "add",
        "how the condition's vector comes in: added to every row; to the start rows only; there "
        "and by scale, shift and gate of every block, from its own matrix or a shared one",
    )
    bias: bool = setting(False, "biases in the linear layers")
    dropout: float = setting(0.0, "dropout behind attention and MLP")

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout ({self.dropout}) must lie in [0, 1)")
        if self.mlp_ratio <= 0 or self.mlp_multiple < 1:
            raise ValueError(f"mlp_ratio ({self.mlp_ratio}) must be positive")
        if self.norm_eps <= 0 or self.rope_base <= 1 or self.attention_scale <= 0:
            raise ValueError("norm_eps, attention_scale and rope_base - 1 must be positive")

    @property
    def modulates(self) -> bool:
        """Whether the condition scales, shifts and gates the blocks."""
        return self.condition in ("adaln", "shared_adaln")
