"""LlamaGen's transformer and those made from it: PAR, NAR for images and for video, and ARPG.

    FoundationVision/LlamaGen and Epiphqny/PAR    autoregressive/models/gpt.py
    ThisisBillhe/NAR                              the same, and larp_ar.py for video
    hp-l33/ARPG                                   models/arpg.py

Each function gives a state dict of theirs under our names. All of them are plain expressions of
tensors, so gradients pass through (the golden tests compare those of every published parameter).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def par(theirs: State, num_blocks: int) -> dict[str, Tensor]:
    """PAR, and LlamaGen where there are no special tokens."""
    ours = _shared(theirs, num_blocks, theirs["cls_embedding.embedding_table.weight"])
    ours |= _head(theirs, 0, "norm", "output")
    special = theirs.get("spe_tok_embeddings.special_embeddings.weight")
    if special is not None and len(special):
        ours["transitions.weight"] = special
    return ours


def nar_image(theirs: State, num_blocks: int) -> dict[str, Tensor]:
    """The trunk and its right head, the further blocks and their head below."""
    ours = _shared(theirs, num_blocks, theirs["cls_embedding.embedding_table.weight"])
    ours |= _head(theirs, 0, "norm", "output") | _head(theirs, 1, "medusa_norm", "medusa_output")
    return ours


def nar_video(theirs: State, num_blocks: int) -> dict[str, Tensor]:
    """Heads R (along w), D (h) and B (t); positions are a table whose first row is the class's."""
    first, *_ = table = theirs["abs_pe"].squeeze(0)
    del _
    ours = _shared(theirs, num_blocks, theirs["cls_embedding.embedding_table.weight"] + first)
    ours["positions.weight"] = table[1:]
    for head, letter in enumerate("RDB"):
        ours |= _head(theirs, head, f"norm_{letter}", f"output_{letter}")
    return ours


def arpg(theirs: State, num_codes: int) -> dict[str, Tensor]:
    """Two stacks, one table of codes, mask, classes and null class (its last row is unused)."""
    table = theirs["embeddings.weight"]
    ours = {
        "codes.weight": table[:num_codes],
        "mask": table[num_codes],
        "condition.pooled.weight": table[num_codes + 1 : -2],
        "condition.absent": table[-2],
        "transformer.shared.norm.weight": theirs["layers.norm.weight"],
        "transformer.shared.key_value.weight": torch.cat(
            [theirs["layers.to_k.weight"], theirs["layers.to_v.weight"]]
        ),
    }
    for ours_name, stack in (("blocks", "self_dec"), ("second", "cross_dec")):
        number = 0
        while f"layers.{stack}.{number}.attn.to_q.weight" in theirs:
            block = f"layers.{stack}.{number}"
            own = f"transformer.{ours_name}.{number}"
            to = [f"{block}.attn.to_{letter}.weight" for letter in "qkv"]
            if stack == "self_dec":
                ours[f"{own}.attention.qkv.weight"] = torch.cat([theirs[name] for name in to])
            else:
                ours[f"{own}.attention.query.weight"] = theirs[to[0]]
            ours[f"{own}.attention.out.weight"] = theirs[f"{block}.attn.proj.weight"]
            ours |= _mlp_and_norms(theirs, own, block, "ffn", "attn_norm")
            number += 1
    return ours | _head(theirs, 0, "norm", "head")


def _shared(theirs: State, num_blocks: int, classes: Tensor) -> dict[str, Tensor]:
    ours = {
        "codes.weight": theirs["tok_embeddings.weight"],
        "condition.pooled.weight": classes[:-1],
        "condition.absent": classes[-1],
    }
    number = 0
    while f"layers.{number}.attention.wqkv.weight" in theirs:
        block = f"layers.{number}"
        own = (
            f"transformer.blocks.{number}"
            if number < num_blocks
            else f"transformer.head_blocks.{number - num_blocks}"
        )
        ours[f"{own}.attention.qkv.weight"] = theirs[f"{block}.attention.wqkv.weight"]
        ours[f"{own}.attention.out.weight"] = theirs[f"{block}.attention.wo.weight"]
        ours |= _mlp_and_norms(theirs, own, block, "feed_forward", "attention_norm")
        number += 1
    return ours


def _mlp_and_norms(
    theirs: State, own: str, block: str, mlp: str, attention_norm: str
) -> dict[str, Tensor]:
    gate, up = (theirs[f"{block}.{mlp}.{name}.weight"] for name in ("w1", "w3"))
    return {
        f"{own}.mlp.gate_up.weight": torch.cat([gate, up]),
        f"{own}.mlp.down.weight": theirs[f"{block}.{mlp}.w2.weight"],
        f"{own}.attention_norm.weight": theirs[f"{block}.{attention_norm}.weight"],
        f"{own}.mlp_norm.weight": theirs[f"{block}.ffn_norm.weight"],
    }


def _head(theirs: State, number: int, norm: str, output: str) -> dict[str, Tensor]:
    return {
        f"transformer.norms.{number}.norm.weight": theirs[f"{norm}.weight"],
        f"heads.{number}.weight": theirs[f"{output}.weight"],
    }
