"""Attention, and the one rule that gives every mask.

    context i sees context j   iff a_j <= a_i     (both ways inside a step, causal between steps)
    query   i sees context j   iff a_j <  a_i     (a_i: the step being predicted)
    query   i sees query   j   iff a_j == a_i and queries meet
    context never sees a query, and nothing sees another clip

`visible` is that rule on vectors that broadcast. It fills the dense masks of the CPU, and is the
mask function of FlexAttention on CUDA, whose blocks are found with it a slab of rows at a time: no
l x l tensor is allocated there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.layout import Role

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = "Tensor | BlockMask | None"
"""Dense, bool [#b, 1, q, k], or its blocks; None where everything is seen."""

_QUERY = int(Role.QUERY)  # a compiler takes no enumeration for a number
BLOCK = 128
"""Rows of a block; on CUDA more rows than this are never asked with a dense mask."""


class Sight(NamedTuple):
    """What the rule asks of rows: their steps and roles [r], and whose clip they are of [#b, r].

    `clip` tells apart clips that are packed into one sequence; padding is of a clip below 0, which
    nothing else is of. It is None where a sequence is one clip and nothing is padded.
    """

    step: Int[Tensor, "*r"]
    role: Int[Tensor, "*r"]
    clip: Int[Tensor, "*r"] | None = None

    def rows(self, chosen: slice) -> Sight:
        clip = None if self.clip is None else self.clip[:, chosen]
        return Sight(self.step[chosen], self.role[chosen], clip)


def visible(i: Sight, j: Sight, queries_meet: bool) -> Bool[Tensor, "..."]:
    """Whether row i sees row j."""
    asks, is_query = i.role == _QUERY, j.role == _QUERY
    seen = ~is_query & torch.where(asks, j.step < i.step, j.step <= i.step)
    if queries_meet:
        seen = seen | (asks & is_query & (j.step == i.step))
    return seen if i.clip is None or j.clip is None else seen & (i.clip == j.clip)


def make_mask(asking: Sight, asked: Sight, queries_meet: bool = True) -> Mask:
    """What `asking` rows see of the `asked` ones, as suits the device that they are on."""
    if asking.step.is_cuda and len(asking.step) > BLOCK:
        return block_mask(asking, asked, queries_meet)
    mask = dense_mask(asking, asked, queries_meet)
    return None if asking.clip is None and mask.all() else mask


def wide_mask(asking: Sight, asked: Sight, width: int) -> Bool[Tensor, "#b 1 q width"]:
    """The rule for every pair, and behind the `asked` rows others that nothing sees."""
    mask = dense_mask(asking, asked)
    return F.pad(mask, (0, width - mask.shape[3]))


def dense_mask(asking: Sight, asked: Sight, queries_meet: bool = True) -> Bool[Tensor, "#b 1 q k"]:
    """The rule for every pair."""
    i_clip = None if asking.clip is None else asking.clip[:, None, :, None]
    j_clip = None if asked.clip is None else asked.clip[:, None, None, :]
    i = Sight(asking.step[:, None], asking.role[:, None], i_clip)
    j = Sight(asked.step[None, :], asked.role[None, :], j_clip)
    mask = visible(i, j, queries_meet)
    return mask if mask.ndim == 4 else mask[None, None]


def block_mask(asking: Sight, asked: Sight, queries_meet: bool = True) -> Mask:
    """The rule as a function, and the blocks of pairs for some or all of which it holds.

    Samples of a batch may differ in padding: a block is skipped if it is empty for each of them.
    """
    from torch.nn.attention.flex_attention import BlockMask

    some, every = [], []
    num_asking, num_asked = len(asking.step), len(asked.step)
    for start in range(0, num_asking, BLOCK):
        slab = dense_mask(asking.rows(slice(start, start + BLOCK)), asked, queries_meet)[:, 0]
        slab = F.pad(slab, (0, -num_asked % BLOCK, 0, BLOCK - slab.shape[1]))
        pairs = slab.unflatten(2, (-1, BLOCK)).movedim(2, 0).flatten(1)
        some.append(pairs.any(dim=1))
        every.append(pairs.all(dim=1))
    full = torch.stack(every)
    return BlockMask.from_kv_blocks(
        *_listed(torch.stack(some) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_function(asking, asked, queries_meet),
        seq_lengths=(num_asking, num_asked),
    )


def _listed(blocks: Bool[Tensor, "q k"]) -> tuple[Int[Tensor, "1 1 q"], Int[Tensor, "1 1 q k"]]:
    """How many blocks a row of them has, and which: those come first."""
    chosen = blocks.argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], chosen.int()[None, None]


def _mask_function(
    asking: Sight, asked: Sight, queries_meet: bool
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible` by the numbers of sample, head and two rows."""

    def row(rows: Sight, sample: Tensor, number: Tensor) -> Sight:
        clip = rows.clip
        if clip is not None:
            clip = clip[0, number] if len(clip) == 1 else clip[sample, number]
        return Sight(rows.step[number], rows.role[number], clip)

    def sees(sample: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return visible(row(asking, sample, i), row(asked, sample, j), queries_meet)

    return sees


def attend(
    query: Float[Tensor, "b n q e"],
    key: Float[Tensor, "b n k e"],
    value: Float[Tensor, "b n k e"],
    mask: Mask,
    scale: float,
) -> Float[Tensor, "b n q e"]:
    """Scaled dot-product attention under `mask`."""
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms leave autocast's type
    return _flex_attention(query.is_cuda)(query, key, value, block_mask=mask, scale=scale)


@cache
def _flex_attention(is_compiled: bool) -> Callable[..., Any]:
    """Uncompiled it makes all scores, which is for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    function: Any = flex_attention
    return torch.compile(function) if is_compiled else function
