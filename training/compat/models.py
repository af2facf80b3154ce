"""A published generator's sizes as settings of ours: block configuration, model and method."""

from __future__ import annotations

from math import ceil, isqrt

from training.block_config import BlockConfig
from training.compat.sizes import Sizes
from training.config import ModelConfig
from training.method_config import MethodConfig

METHODS = {
    "llamagen": "raster",
    "par": "par",
    "nar-image": "nar",
    "nar-video": "nar",
    "arpg": "arpg",
    "var": "next_scale",
}
"""The method of each layout."""
RECIPES = {
    "llamagen": "imagenet-raster",
    "par": "imagenet-par-4",
    "nar-image": "imagenet-nar",
    "nar-video": "ucf101-nar",
    "arpg": "imagenet-arpg",
    "var": "imagenet-var",
}
"""The preset that says how samples of each layout are drawn, and in how many steps."""
LLAMAGEN_BLOCK = BlockConfig(
    norm="rms",
    norm_eps=1e-5,
    mlp_multiple=256,
    qk_norm="none",
    position="rope",
    rope_outside="zero",
    condition="start",
)
"""LlamaGen's, and that of PAR, NAR for images and ARPG; NAR for video has a table of positions."""
VAR_BLOCK = BlockConfig(mlp="gelu_tanh", qk_norm="l2", condition="adaln", bias=True)


def block_of(layout: str, sizes: Sizes) -> dict[str, object]:
    """The settings of `BlockConfig` that shapes tell."""
    if layout == "var":
        return {
            "mlp_ratio": sizes.hidden / sizes.width,
            "qk_norm": "l2" if sizes.has_lengths else "none",
            "attention_scale": 1.0 if sizes.has_lengths else 0.25,
            "condition": "shared_adaln" if sizes.shares_modulation else "adaln",
        }
    return _mlp(sizes)


def _mlp(sizes: Sizes) -> dict[str, object]:
    """The largest power of two, to 256, to which the MLP's width can have been rounded up; where
    there is none, that width by a ratio of its own."""
    exact = int(4 * sizes.width * 2 / 3)
    for multiple in (1 << power for power in range(8, -1, -1)):
        if multiple * ceil(exact / multiple) == sizes.hidden:
            return {"mlp_multiple": multiple}
    return {"mlp_multiple": 1, "mlp_ratio": (sizes.hidden + 0.5) / sizes.width * 1.5}


def hidden_of(layout: str, model: ModelConfig) -> int:
    """The width inside the MLP of a model of ours."""
    block = model.block
    if block.mlp == "gelu_tanh":
        return round(block.mlp_ratio * model.width)
    multiple = block.mlp_multiple
    return multiple * ceil(int(block.mlp_ratio * model.width * 2 / 3) / multiple)


def regions_of(group: int) -> tuple[int, int, int] | None:
    """PAR's regions for so many cells a step; None when they are no square."""
    side = isqrt(group)
    return (1, side, side) if side * side == group else None


def sizes_of(
    layout: str, model: ModelConfig, method: MethodConfig, codebook_size: int, num_classes: int
) -> Sizes:
    """The sizes of the published model that these settings are (without VAR's scales)."""
    further = {"nar-image": 1, "nar-video": 2}.get(layout, 0)
    n_t, n_h, n_w = method.regions
    return Sizes(
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        hidden=hidden_of(layout, model),
        codebook_size=codebook_size,
        num_classes=num_classes,
        further=sum(model.head_blocks[:further]),
        transitions=n_t * n_h * n_w - 1 if layout == "par" else 0,
        shares_modulation=model.block.condition == "shared_adaln",
        has_lengths=model.block.qk_norm == "l2",
    )
