"""What a published generator's file says by its keys and shapes: its layout and its sizes.

layout = detect_layout(checkpoint)          # "par"
sizes = read_sizes(checkpoint, layout, num_further=0)
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizer.checkpoint import Checkpoint
from tokenizer.settings import UserError
from tokenizer.told_sizes import agreed_size, count_numbered
from training.compat.sizes import Sizes

DETECTED_BY = {
    "var": "pos_1LC, word_embed.*, blocks.*.attn.mat_qkv.*",
    "arpg": "layers.self_dec.*, layers.cross_dec.*",
    "nar-video": "norm_R.*, output_R.*, abs_pe",
    "nar-image": "medusa_norm.*, medusa_output.*",
    "par": "spe_tok_embeddings.*",
    "llamagen": "layers.*.attention.wqkv.*",
}
"""Keys that only the layout has, or (the last) that none of the others before it has."""
CARRIES_NOTHING = {
    "var": r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias",
    **dict.fromkeys(
        ("llamagen", "par", "nar-image", "nar-video", "arpg"),
        r"freqs_cis|causal_mask|group_mask|diagonal_mask|layers\.\d+\.attention\.kv_cache\..*",
    ),
}
"""Buffers that follow from the sizes, as regular expressions over whole keys."""
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Heads of the published widths of LlamaGen and its descendants; shapes do not tell them."""
MAX_BLOCKS = 128


def detect_layout(checkpoint: Checkpoint) -> str:
    """The layout of a file; UserError when its keys are of none, or of several."""
    found = [name for name, keys in DETECTED_BY.items() if _has_any(checkpoint, keys)]
    if len(found) > 1 and "llamagen" in found:
        found.remove("llamagen")
    if len(found) == 1:
        return found[0]
    first = ", ".join(list(checkpoint.tensors)[:3])
    known = "; ".join(f"{name} has {keys}" for name, keys in DETECTED_BY.items())
    of = f"of several layouts ({', '.join(found)})" if found else "of no known layout"
    raise UserError(f"{checkpoint.path}: its keys ({first}, ...) are {of}: {known}")


def read_sizes(checkpoint: Checkpoint, layout: str, num_further: int) -> Sizes:
    """The sizes in a file of this layout, `num_further` of whose blocks belong to further heads.

    Every size is what most tensors say; UserError when none says it, but 0 where only one would:
    `check_keys` then names the one that is missing.
    """
    if layout == "var":
        return _var(checkpoint)
    if layout == "arpg":
        return _arpg(checkpoint)
    width = _told(checkpoint, "the width", (r"tok_embeddings\.weight", 1), _NORM, (_TO_OUT, 0))
    num_blocks = count_numbered(checkpoint, "layers.{}.", MAX_BLOCKS)
    if num_blocks <= num_further:
        raise UserError(
            f"{checkpoint.path}: has {num_blocks} blocks, and further heads are to have "
            f"{num_further} of them; say how many each has with --model.head_blocks"
        )
    special = "spe_tok_embeddings.special_embeddings.weight"
    return Sizes(
        width=width,
        depth=num_blocks - num_further,
        further=num_further,
        hidden=_hidden(checkpoint),
        codebook_size=_told(
            checkpoint,
            "the number of codes",
            (r"tok_embeddings\.weight", 0),
            (r"(medusa_)?output(_[RDB])?\.weight", 0),
        ),
        num_classes=_size(checkpoint, "cls_embedding.embedding_table.weight", 0) - 1,
        heads=HEADS.get(width, 0),
        transitions=_size(checkpoint, special, 0) if layout == "par" else 0,
        num_cells=_size(checkpoint, "abs_pe", 1) - 1 if layout == "nar-video" else 0,
    )


def _arpg(checkpoint: Checkpoint) -> Sizes:
    width = _told(checkpoint, "the width", (r"embeddings\.weight", 1), _NORM, (_TO_OUT, 0))
    codes, rows = _size(checkpoint, "head.weight", 0), _size(checkpoint, "embeddings.weight", 0)
    stacks = (f"layers.{name}.{{}}." for name in ("self_dec", "cross_dec"))
    return Sizes(
        width=width,
        depth=2 * max(count_numbered(checkpoint, stack, MAX_BLOCKS) for stack in stacks),
        hidden=_hidden(checkpoint),
        codebook_size=codes,
        num_classes=rows - codes - 3,
        heads=HEADS.get(width, 0),
    )


def _var(checkpoint: Checkpoint) -> Sizes:
    width = _told(
        checkpoint,
        "the width",
        (r"pos_1LC|pos_start", 2),
        (r"class_emb\.weight", 1),
        (r"blocks\.\d+\.attn\.(proj\.weight|q_bias|v_bias)", 0),
    )
    lengths = r"blocks\.\d+\.attn\.scale_mul_1H11"
    has_lengths = any(re.fullmatch(lengths, key) for key in checkpoint.tensors)
    heads = width // 64 if width % 64 == 0 else 0
    if has_lengths:
        heads = _told(checkpoint, "the number of heads", (lengths, 1))
    return Sizes(
        width=width,
        depth=count_numbered(checkpoint, "blocks.{}.", MAX_BLOCKS),
        hidden=_told(
            checkpoint,
            "the width inside the MLP",
            (r"blocks\.\d+\.ffn\.fc1\.(weight|bias)", 0),
            (r"blocks\.\d+\.ffn\.fc2\.weight", 1),
        ),
        codebook_size=_told(checkpoint, "the number of codes", (r"head\.(weight|bias)", 0)),
        num_classes=_size(checkpoint, "class_emb.weight", 0) - 1,
        heads=heads,
        num_cells=_told(checkpoint, "the number of cells", (r"pos_1LC|lvl_1L", 1)),
        first_cells=_size(checkpoint, "pos_start", 1),
        num_scales=_size(checkpoint, "lvl_embed.weight", 0),
        channels=_size(checkpoint, "word_embed.weight", 1),
        shares_modulation=any(key.startswith("shared_ada_lin.") for key in checkpoint.tensors),
        has_lengths=has_lengths,
    )


_NORM = (r"(layers\.(\w+\.)*)?\w*norm\w*\.weight", 0)
_TO_OUT = r"layers\.(\w+\.)*(wo|proj)\.weight"


def _hidden(checkpoint: Checkpoint) -> int:
    mlp = r"layers\.(\w+\.)*(feed_forward|ffn)"
    return _told(
        checkpoint,
        "the width inside the MLP",
        (rf"{mlp}\.(w1|w3)\.weight", 0),
        (rf"{mlp}\.w2\.weight", 1),
    )


def _told(checkpoint: Checkpoint, what: str, *by: tuple[str, int]) -> int:
    """What tensors say whose key matches a pattern, each along an axis."""
    return agreed_size(checkpoint.path, what, _sizes(checkpoint, by))


def _size(checkpoint: Checkpoint, key: str, axis: int) -> int:
    """What one tensor says; 0 when it is missing or empty."""
    found = [size for size in _sizes(checkpoint, [(re.escape(key), axis)]) if size]
    return agreed_size(checkpoint.path, f"the size of {key}", found) if found else 0


def _sizes(checkpoint: Checkpoint, by: Iterable[tuple[str, int]]) -> list[int]:
    return [
        value.shape[axis]
        for pattern, axis in by
        for key, value in checkpoint.tensors.items()
        if value.ndim > axis and re.fullmatch(pattern, key)
    ]


def _has_any(checkpoint: Checkpoint, keys: str) -> bool:
    patterns = [re.escape(key).replace(r"\*", ".*") for key in keys.split(", ")]
    return any(re.fullmatch(pattern, key) for pattern in patterns for key in checkpoint.tensors)
