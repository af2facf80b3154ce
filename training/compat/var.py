"""VAR's transformer (FoundationVision/VAR, models/var.py) under our names.

Its level and start vectors only ever meet the position of their cells, so they are added to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def var(theirs: State) -> dict[str, Tensor]:
    """A state dict of VAR's as one of ours; differentiable, like those of `compat.llamagen`."""
    classes = theirs["class_emb.weight"]
    start = theirs["pos_start"].squeeze(0)
    level = theirs["lvl_1L"].squeeze(0)
    positions = theirs["pos_1LC"].squeeze(0) + theirs["lvl_embed.weight"][level]
    ours = {
        "condition.pooled.weight": classes[:-1],
        "condition.absent": classes[-1],
        "positions.weight": torch.cat([positions[: len(start)] + start, positions[len(start) :]]),
        "features.weight": theirs["word_embed.weight"],
        "features.bias": theirs["word_embed.bias"],
        "heads.0.weight": theirs["head.weight"],
        "heads.0.bias": theirs["head.bias"],
        "transformer.norms.0.modulation.weight": theirs["head_nm.ada_lin.1.weight"],
        "transformer.norms.0.modulation.bias": theirs["head_nm.ada_lin.1.bias"],
    }
    if "shared_ada_lin.1.weight" in theirs:
        ours["transformer.modulation.weight"] = theirs["shared_ada_lin.1.weight"]
        ours["transformer.modulation.bias"] = theirs["shared_ada_lin.1.bias"]
    number = 0
    while f"blocks.{number}.attn.mat_qkv.weight" in theirs:
        ours |= _block(theirs, f"blocks.{number}", f"transformer.blocks.{number}")
        number += 1
    return ours


def _block(theirs: State, block: str, own: str) -> dict[str, Tensor]:
    query_bias, value_bias = theirs[f"{block}.attn.q_bias"], theirs[f"{block}.attn.v_bias"]
    ours = {
        f"{own}.attention.qkv.weight": theirs[f"{block}.attn.mat_qkv.weight"],
        f"{own}.attention.qkv.bias": torch.cat(
            [query_bias, torch.zeros_like(query_bias), value_bias]
        ),
        f"{own}.attention.out.weight": theirs[f"{block}.attn.proj.weight"],
        f"{own}.attention.out.bias": theirs[f"{block}.attn.proj.bias"],
        f"{own}.mlp.up.weight": theirs[f"{block}.ffn.fc1.weight"],
        f"{own}.mlp.up.bias": theirs[f"{block}.ffn.fc1.bias"],
        f"{own}.mlp.down.weight": theirs[f"{block}.ffn.fc2.weight"],
        f"{own}.mlp.down.bias": theirs[f"{block}.ffn.fc2.bias"],
    }
    if f"{block}.ada_gss" in theirs:
        ours[f"{own}.offset"] = theirs[f"{block}.ada_gss"].squeeze(0).squeeze(0)
    else:
        ours[f"{own}.modulation.weight"] = theirs[f"{block}.ada_lin.1.weight"]
        ours[f"{own}.modulation.bias"] = theirs[f"{block}.ada_lin.1.bias"]
    if f"{block}.attn.scale_mul_1H11" in theirs:
        ours[f"{own}.attention.query_norm.log_length"] = theirs[
            f"{block}.attn.scale_mul_1H11"
        ].squeeze(0)
    return ours
