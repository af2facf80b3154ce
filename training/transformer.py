"""The transformer that every method shares: one block, configured as data, and its cache.

It maps rows to rows and knows neither orders nor codes; who sees whom arrives as a mask. With a
cache, the rows of earlier calls are seen as well, and the leading `num_context` rows of this call
are kept for later ones (queries are never kept).

Blocks run one after another; outputs are taken behind the last of them or, for further heads,
behind further blocks (NAR). With a second stack (ARPG) contexts run through the first blocks only,
queries through the others only, and all of those see the same keys and values: the contexts'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.attention import Mask, attend
from training.block_config import BlockConfig
from training.cache import Cache, GrowingCache, KeysValues, Memory, StaticCache
from training.rotary import Rotation, rotated


@dataclass(frozen=True)
class Stacks:
    """How many blocks there are: for all rows, behind each further output, for queries only."""

    depth: int
    head_blocks: tuple[int, ...] = ()
    second: int = 0

    @property
    def num_cached(self) -> int:
        """Sets of keys and values that contexts leave behind."""
        return self.depth + sum(self.head_blocks) + (self.second > 0)


class Transformer(nn.Module):
    """Pre-norm blocks of attention and MLP, and a final norm per output."""

    def __init__(self, width: int, heads: int, stacks: Stacks, block: BlockConfig) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.stacks = stacks
        self.blocks = nn.ModuleList(Block(width, heads, block) for _ in range(stacks.depth))
        self.head_blocks = nn.ModuleList(
            Block(width, heads, block) for _ in range(sum(stacks.head_blocks))
        )
        self.second = nn.ModuleList(
            Block(width, heads, block, is_second=True) for _ in range(stacks.second)
        )
        self.shared = SharedKeys(width, heads, block) if stacks.second else None
        self.norms = nn.ModuleList(
            FinalNorm(width, block) for _ in range(1 + len(stacks.head_blocks))
        )
        self.modulation = nn.Linear(width, 6 * width) if block.condition == "shared_adaln" else None

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        masks: Sequence[Mask],
        rotation: Rotation | None = None,
        condition: Vectors | None = None,
        cache: Cache | None = None,
        num_context: int = 0,
    ) -> list[Float[Tensor, "b l d"]]:
        """The rows behind each output, normalised; with a second stack those of contexts are 0.

        There is one mask, or one for contexts and one for queries if these have a stack of their
        own. `condition` modulates the blocks, in the configurations that have it.
        """
        shared = None
        if self.modulation is not None:
            assert condition is not None
            shared = self.modulation(F.silu(condition.each)).unflatten(-1, (6, -1))
        memory = Memory(cache)
        if self.shared is not None:
            return [self._in_two_stacks(x, masks, rotation, condition, shared, memory, num_context)]
        (mask,) = masks
        outputs, behind = [], list(self.stacks.head_blocks)
        for block in self.blocks:
            x = block(x, mask, rotation, condition, shared, memory)
        outputs.append(self.norms[0](x, condition))
        further = iter(self.head_blocks)
        for norm, count in zip(self.norms[1:], behind, strict=True):
            for _ in range(count):
                x = next(further)(x, mask, rotation, condition, shared, memory)
            outputs.append(norm(x, condition))
        memory.keep(num_context)
        return outputs

    def _in_two_stacks(
        self,
        x: Float[Tensor, "b l d"],
        masks: Sequence[Mask],
        rotation: Rotation | None,
        condition: Vectors | None,
        shared: Float[Tensor, "c 6 d"] | None,
        memory: Memory,
        num_context: int,
    ) -> Float[Tensor, "b l d"]:
        assert self.shared is not None
        known, asking = x[:, :num_context], x[:, num_context:]
        at_known, at_asking = _split(rotation, num_context)
        of_known, of_asking = _split(condition, num_context)
        for block in self.blocks:
            known = block(known, masks[0], at_known, of_known, shared, memory)
        keys_values = memory.extended(*self.shared(known, at_known))
        for block in self.second:
            asking = block(asking, masks[1], at_asking, of_asking, shared, keys_values)
        memory.keep(num_context)
        return F.pad(self.norms[0](asking, of_asking), (0, 0, num_context, 0))

    def new_cache(self, batch_size: int, capacity: int, is_static: bool = False) -> Cache:
        """An empty cache for `capacity` contexts, and queries of one call, on this device."""
        weight = next(self.parameters())
        shape = (self.stacks.num_cached, batch_size, self.heads, capacity, self.head_width)
        keys, values = weight.new_zeros(2, *shape)
        return StaticCache(keys, values) if is_static else GrowingCache(keys, values)


@dataclass(frozen=True)
class Vectors:
    """The vector of each sample's condition or, of clips in one sequence, of each clip's."""

    each: Float[Tensor, "c d"]
    of_row: Int[Tensor, " l"] | None = None
    """In one sequence of several clips: the clip of each row."""

    def rows(self, chosen: slice) -> Vectors:
        return self if self.of_row is None else Vectors(self.each, self.of_row[chosen])

    def at_rows(self, values: Float[Tensor, "c d"]) -> Float[Tensor, "#b #l d"]:
        """What was made from `each`, where it belongs."""
        return values[:, None] if self.of_row is None else values[self.of_row][None]


Sliced = TypeVar("Sliced", Rotation, Vectors)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the condition may scale, shift and gate."""

    def __init__(
        self, width: int, heads: int, config: BlockConfig, is_second: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(width, config, has_gain=not config.modulates)
        self.attention = Attention(width, heads, config, is_second)
        self.mlp_norm = make_norm(width, config, has_gain=not config.modulates)
        self.mlp = SwiGLU(width, config) if config.mlp == "swiglu" else GeluMLP(width, config)
        self.dropout = config.dropout
        if config.condition == "adaln":
            self.modulation = nn.Linear(width, 6 * width)
        elif config.condition == "shared_adaln":
            self.offset = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self._kind = config.condition

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Mask,
        rotation: Rotation | None,
        condition: Vectors | None,
        shared: Float[Tensor, "c 6 d"] | None,
        memory: Memory | KeysValues,
    ) -> Float[Tensor, "b l d"]:
        """`memory` is where keys and values are kept or, in a second stack, what they are."""
        modulation = self._modulation(condition, shared)
        change = self.attention(
            modulation.shifted(self.attention_norm(x), 0), mask, rotation, memory
        )
        x = x + self._dropped(modulation.gated(change, 0))
        change = self.mlp(modulation.shifted(self.mlp_norm(x), 1))
        return x + self._dropped(modulation.gated(change, 1))

    def _modulation(self, condition: Vectors | None, shared: Tensor | None) -> Modulation:
        if self._kind == "adaln":
            assert condition is not None
            return Modulation(
                condition, self.modulation(F.silu(condition.each)).unflatten(-1, (6, -1))
            )
        if self._kind == "shared_adaln":
            assert shared is not None
            return Modulation(condition, shared + self.offset)
        return Modulation(None, None)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


@dataclass(frozen=True)
class Modulation:
    """Gates, scales and shifts, two of each: of attention and of the MLP (VAR's order); or none."""

    condition: Vectors | None
    six: Float[Tensor, "c 6 d"] | None

    def shifted(self, x: Float[Tensor, "b l d"], branch: int) -> Float[Tensor, "b l d"]:
        if self.condition is None or self.six is None:
            return x
        scale, shift = (self.condition.at_rows(self.six[:, kind + branch]) for kind in (2, 4))
        return x * (scale + 1) + shift

    def gated(self, x: Float[Tensor, "b l d"], branch: int) -> Float[Tensor, "b l d"]:
        if self.condition is None or self.six is None:
            return x
        return x * self.condition.at_rows(self.six[:, branch])


class Attention(nn.Module):
    """Attention to rows of its own or, in a second stack, to given keys and values."""

    def __init__(self, width: int, heads: int, config: BlockConfig, is_second: bool) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query = _projection(width, width, config.bias) if is_second else None
        self.qkv = None if is_second else _projection(width, 3 * width, config.bias)
        self.out = nn.Linear(width, width, bias=config.bias)
        nn.init.zeros_(self.out.weight)
        self.query_norm = HeadNorm(self.head_width, heads, config, learns_length=True)
        self.key_norm = None if is_second else HeadNorm(self.head_width, heads, config)
        self.scale = config.attention_scale
        if config.qk_norm != "l2":
            self.scale *= self.head_width**-0.5

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Mask,
        rotation: Rotation | None,
        memory: Memory | KeysValues,
    ) -> Float[Tensor, "b l d"]:
        if self.qkv is None:
            assert self.query is not None
            assert not isinstance(memory, Memory)
            query = _by_head(self.query(x), self.head_width)
            query = rotated(self.query_norm(query), rotation)
            key, value = memory
        else:
            assert self.key_norm is not None
            assert isinstance(memory, Memory)
            query, key, value = (
                _by_head(each, self.head_width) for each in self.qkv(x).chunk(3, dim=-1)
            )
            query = rotated(self.query_norm(query), rotation)
            key, value = memory.extended(rotated(self.key_norm(key), rotation), value)
        return self.out(attend(query, key, value, mask, self.scale).transpose(1, 2).flatten(2))


class SharedKeys(nn.Module):
    """The keys and values of a second stack, from the contexts behind the first (ARPG, eq. 4)."""

    def __init__(self, width: int, heads: int, config: BlockConfig) -> None:
        super().__init__()
        self.head_width = width // heads
        self.norm = make_norm(width, config)
        self.key_value = _projection(width, 2 * width, config.bias)
        self.key_norm = HeadNorm(self.head_width, heads, config)

    def forward(self, x: Float[Tensor, "b l d"], rotation: Rotation | None) -> KeysValues:
        key, value = self.key_value(self.norm(x)).chunk(2, dim=-1)
        key = self.key_norm(_by_head(key, self.head_width))
        return rotated(key, rotation), _by_head(value, self.head_width)


class HeadNorm(nn.Module):
    """What is done to queries or keys [b, heads, l, head_width] before they meet."""

    def __init__(
        self, width: int, heads: int, config: BlockConfig, learns_length: bool = False
    ) -> None:
        super().__init__()
        self.kind = config.qk_norm
        if self.kind == "norm":
            self.norm = make_norm(width, config)
        elif self.kind == "l2" and learns_length:
            self.log_length = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0)))
        self._learns_length = learns_length

    def forward(self, x: Float[Tensor, "b n l e"]) -> Float[Tensor, "b n l e"]:
        if self.kind == "none":
            return x
        if self.kind == "norm":
            return self.norm(x)
        x = F.normalize(x, dim=-1)
        return x * self.log_length.clamp(max=math.log(100)).exp() if self._learns_length else x


class SwiGLU(nn.Module):
    """silu(gate) * up, with as many parameters as a plain MLP of the same ratio."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        multiple = config.mlp_multiple
        hidden = multiple * math.ceil(int(config.mlp_ratio * width * 2 / 3) / multiple)
        self.gate_up = _projection(width, 2 * hidden, config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GeluMLP(nn.Module):
    """The MLP of GPT-2, by the tanh approximation."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        hidden = round(config.mlp_ratio * width)
        self.up = _projection(width, hidden, config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class FinalNorm(nn.Module):
    """The norm before the logits; the condition may scale and shift it."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        self.norm = make_norm(width, config, has_gain=not config.modulates)
        self.modulation = nn.Linear(width, 2 * width) if config.modulates else None

    def forward(
        self, x: Float[Tensor, "b l d"], condition: Vectors | None
    ) -> Float[Tensor, "b l d"]:
        x = self.norm(x)
        if self.modulation is None:
            return x
        assert condition is not None
        made = self.modulation(F.silu(condition.each)).chunk(2, dim=-1)
        scale, shift = (condition.at_rows(each) for each in made)
        return x * (scale + 1) + shift


def make_norm(width: int, config: BlockConfig, has_gain: bool = True) -> nn.Module:
    """The normalisation that the block configuration names, over the last axis."""
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=has_gain)
    return nn.LayerNorm(
        width, eps=config.norm_eps, elementwise_affine=has_gain, bias=config.bias and has_gain
    )


def _projection(width: int, out: int, bias: bool) -> nn.Linear:
    linear = nn.Linear(width, out, bias=bias)
    nn.init.normal_(linear.weight, std=1 / math.sqrt(width))
    return linear


def _by_head(x: Float[Tensor, "b l d"], head_width: int) -> Float[Tensor, "b n l e"]:
    return x.unflatten(-1, (-1, head_width)).transpose(1, 2)


def _split(of_rows: Sliced | None, count: int) -> tuple[Sliced, Sliced] | tuple[None, None]:
    """What belongs to the first `count` rows, and to the others."""
    if of_rows is None:
        return None, None
    return of_rows.rows(slice(None, count)), of_rows.rows(slice(count, None))
