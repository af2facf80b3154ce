"""Sizes of a published generator, and the tensors that a file of it has.

    sizes = Sizes(width=1024, depth=24, hidden=2816, codebook_size=16384, num_classes=1000)
    KEYS["par"](sizes)          # {"tok_embeddings.weight": [16384, 1024], ...}
    num_parameters("par", sizes)         # as published

The tables are the definitions that their authors published, buffers left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

Shapes = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a file say (heads only sometimes)."""

    width: int
    depth: int
    """Blocks, without those of further heads."""
    hidden: int
    """Width inside the MLP."""
    codebook_size: int
    num_classes: int
    heads: int = 0
    further: int = 0
    """Blocks of further heads, all together."""
    transitions: int = 0
    num_cells: int = 0
    """VAR, NAR for video: cells of the position table."""
    first_cells: int = 1
    """VAR: cells of the first scale."""
    num_scales: int = 1
    channels: int = 0
    """VAR: of the partial reconstructions."""
    shares_modulation: bool = False
    has_lengths: bool = True
    """VAR: queries and keys of length one."""


def num_parameters(layout: str, sizes: Sizes) -> int:
    """Parameters of the published model of this layout."""
    return sum(prod(shape) for shape in KEYS[layout](sizes).values())


def _llamagen(sizes: Sizes) -> Shapes:
    return _trunk(sizes) | _head("norm", "output", sizes)


def _par(sizes: Sizes) -> Shapes:
    special = [sizes.transitions, sizes.width]
    return _llamagen(sizes) | {"spe_tok_embeddings.special_embeddings.weight": special}


def _nar_image(sizes: Sizes) -> Shapes:
    return _llamagen(sizes) | _head("medusa_norm", "medusa_output", sizes)


def _nar_video(sizes: Sizes) -> Shapes:
    keys = _trunk(sizes) | {"abs_pe": [1, 1 + sizes.num_cells, sizes.width]}
    for letter in "RDB":
        keys |= _head(f"norm_{letter}", f"output_{letter}", sizes)
    return keys


def _trunk(sizes: Sizes) -> Shapes:
    width = sizes.width
    keys = {
        "cls_embedding.embedding_table.weight": [sizes.num_classes + 1, width],
        "tok_embeddings.weight": [sizes.codebook_size, width],
    }
    for number in range(sizes.depth + sizes.further):
        block = f"layers.{number}"
        keys |= {
            f"{block}.attention.wqkv.weight": [3 * width, width],
            f"{block}.attention.wo.weight": [width, width],
            f"{block}.attention_norm.weight": [width],
        }
        keys |= _mlp(f"{block}.feed_forward", f"{block}.ffn_norm", sizes)
    return keys


def _arpg(sizes: Sizes) -> Shapes:
    """One table of codes, mask, classes, null class and a row that nothing uses."""
    width = sizes.width
    square = [width, width]
    keys = {
        "embeddings.weight": [sizes.codebook_size + sizes.num_classes + 3, width],
        "layers.norm.weight": [width],
        "layers.to_k.weight": square,
        "layers.to_v.weight": square,
    }
    for stack, letters in (("self_dec", "qkv"), ("cross_dec", "q")):
        for number in range(sizes.depth // 2):
            block = f"layers.{stack}.{number}"
            keys |= {f"{block}.attn.to_{letter}.weight": square for letter in letters}
            keys |= {f"{block}.attn.proj.weight": square, f"{block}.attn_norm.weight": [width]}
            keys |= _mlp(f"{block}.ffn", f"{block}.ffn_norm", sizes)
    return keys | _head("norm", "head", sizes)


def _mlp(mlp: str, norm: str, sizes: Sizes) -> Shapes:
    return {
        f"{mlp}.w1.weight": [sizes.hidden, sizes.width],
        f"{mlp}.w3.weight": [sizes.hidden, sizes.width],
        f"{mlp}.w2.weight": [sizes.width, sizes.hidden],
        f"{norm}.weight": [sizes.width],
    }


def _head(norm: str, output: str, sizes: Sizes) -> Shapes:
    return {
        f"{norm}.weight": [sizes.width],
        f"{output}.weight": [sizes.codebook_size, sizes.width],
    }


def _var(sizes: Sizes) -> Shapes:
    width = sizes.width
    keys = {
        "class_emb.weight": [sizes.num_classes + 1, width],
        "pos_start": [1, sizes.first_cells, width],
        "pos_1LC": [1, sizes.num_cells, width],
        "lvl_embed.weight": [sizes.num_scales, width],
        **_linear("word_embed", width, sizes.channels),
        **_linear("head_nm.ada_lin.1", 2 * width, width),
        **_linear("head", sizes.codebook_size, width),
    }
    if sizes.shares_modulation:
        keys |= _linear("shared_ada_lin.1", 6 * width, width)
    for number in range(sizes.depth):
        block = f"blocks.{number}"
        keys |= {
            f"{block}.attn.mat_qkv.weight": [3 * width, width],
            f"{block}.attn.q_bias": [width],
            f"{block}.attn.v_bias": [width],
            **_linear(f"{block}.attn.proj", width, width),
            **_linear(f"{block}.ffn.fc1", sizes.hidden, width),
            **_linear(f"{block}.ffn.fc2", width, sizes.hidden),
        }
        if sizes.has_lengths:
            keys[f"{block}.attn.scale_mul_1H11"] = [1, sizes.heads, 1, 1]
        if sizes.shares_modulation:
            keys[f"{block}.ada_gss"] = [1, 1, 6, width]
        else:
            keys |= _linear(f"{block}.ada_lin.1", 6 * width, width)
    return keys


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": [out, into], f"{name}.bias": [out]}


KEYS: dict[str, Callable[[Sizes], Shapes]] = {
    "llamagen": _llamagen,
    "par": _par,
    "nar-image": _nar_image,
    "nar-video": _nar_video,
    "arpg": _arpg,
    "var": _var,
}
