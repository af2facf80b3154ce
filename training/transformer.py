"""The transformer that every method shares: one block, configured as data, and its cache.

It maps rows to rows and knows neither orders nor codes; who sees whom arrives as a mask. With a
cache, the rows of earlier calls are seen as well, and the leading `num_context` rows of this call
are kept for later ones (queries are never kept).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.attention import attend
from training.config import BlockConfig, ModelConfig


class Transformer(nn.Module):
    """Pre-norm blocks of attention and MLP, and a final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.block) for _ in range(config.depth)
        )
        self.norm = make_norm(config.width, config.block)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "#b 1 l k"],
        cache: Cache | None = None,
        num_context: int = 0,
    ) -> Float[Tensor, "b l d"]:
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += num_context
        return self.norm(x)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty cache for `capacity` rows, on this model's device."""
        weight = next(self.parameters())
        return Cache(self.config, batch_size, capacity, weight.device, weight.dtype)


class Cache:
    """Keys and values of the rows fed so far, for each layer: [b, heads, capacity, head_width]."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.depth, batch_size, config.heads, capacity, config.width // config.heads)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extended(
        self, layer: int, key: Float[Tensor, "b n l e"], value: Float[Tensor, "b n l e"]
    ) -> tuple[Float[Tensor, "b n k e"], Float[Tensor, "b n k e"]]:
        """The kept rows followed by these, which stay as far as `length` grows after the pass."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, config: BlockConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(width, config)
        self.attention = Attention(width, heads, config)
        self.mlp_norm = make_norm(width, config)
        self.mlp = SwiGLU(width, config) if config.mlp == "swiglu" else GeluMLP(width, config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "#b 1 l k"],
        cache: Cache | None,
        layer: int,
    ) -> Float[Tensor, "b l d"]:
        x = x + self._dropped(self.attention(self.attention_norm(x), mask, cache, layer))
        return x + self._dropped(self.mlp(self.mlp_norm(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, config: BlockConfig) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.bias)
        self.out = nn.Linear(width, width, bias=config.bias)
        head_width = width // heads
        self.query_norm = make_norm(head_width, config) if config.qk_norm else nn.Identity()
        self.key_norm = make_norm(head_width, config) if config.qk_norm else nn.Identity()
        nn.init.normal_(self.qkv.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "b l d"], mask: Tensor, cache: Cache | None, layer: int
    ) -> Float[Tensor, "b l d"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = self.query_norm(query).transpose(1, 2), self.key_norm(key).transpose(1, 2)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.extended(layer, key, value)
        return self.out(attend(query, key, value, mask).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """silu(gate) * up, with as many parameters as a plain MLP of the same ratio."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        hidden = 32 * math.ceil(config.mlp_ratio * width * 2 / 3 / 32)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        nn.init.normal_(self.gate_up.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GeluMLP(nn.Module):
    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        hidden = round(config.mlp_ratio * width)
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        nn.init.normal_(self.up.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def make_norm(width: int, config: BlockConfig) -> nn.Module:
    """The normalisation that the block configuration names, over the last axis."""
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-6, bias=config.bias)
