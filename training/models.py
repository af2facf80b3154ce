"""Generators by name: the sizes of the papers, with their blocks and methods; torch-free.

model_settings("par-xl")             # what `tessera train --model par-xl` sets, by dotted name
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from tokenizer.settings import UserError, to_dict
from training.compat.models import LLAMAGEN_BLOCK, METHODS, VAR_BLOCK
from training.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published size: `layout` is that of its checkpoints, `published` the paper's count."""

    layout: str
    model: ModelConfig
    published: str

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a run by dotted name: the model's, and its method."""
        values = to_dict(self.model)
        block = values.pop("block")
        return {
            "method.name": METHODS[self.layout],
            **{f"model.{key}": value for key, value in values.items()},
            **{f"model.block.{key}": value for key, value in block.items()},
        }


_LLAMAGEN = {  # blocks, width, heads
    "b": (12, 768, 12),
    "m": (18, 1024, 16),
    "l": (24, 1024, 16),
    "lp": (30, 1280, 20),
    "xl": (36, 1280, 20),
    "xxl": (48, 1536, 24),
    "3b": (24, 3200, 32),
}
_OF_LLAMAGEN = {
    "llamagen": {"b": "111M", "l": "343M", "xl": "775M", "xxl": "1.4B", "3b": "3.1B"},
    "par": {"b": "111M", "l": "343M", "xl": "775M", "xxl": "1.4B", "3b": "3.1B"},
    "nar-image": {"b": "130M", "m": "290M", "l": "372M", "xl": "816M", "xxl": "1.46B"},
    "nar-video": {"l": "369M", "lp": "694M"},
    "arpg": {"l": "320M", "xl": "719M", "xxl": "1.3B"},
}
_VAR = {"d16": "310M", "d20": "600M", "d24": "1.0B", "d30": "2.0B", "d36-s": "2.3B"}


def _of_llamagen(layout: str, size: str, published: str) -> Model:
    depth, width, heads = _LLAMAGEN[size]
    model = ModelConfig(
        width=width, depth=depth, heads=heads, head_bias=False, block=LLAMAGEN_BLOCK
    )
    if layout == "nar-image":
        model = replace(model, head_blocks=(1,))
    elif layout == "nar-video":
        model = replace(model, block=replace(LLAMAGEN_BLOCK, position="table"))
    return Model(layout=layout, model=model, published=published)


def _of_var(size: str, published: str) -> Model:
    depth = int(size[1:3])
    block = replace(VAR_BLOCK, condition="shared_adaln") if size.endswith("-s") else VAR_BLOCK
    model = ModelConfig(width=64 * depth, depth=depth, heads=depth, block=block)
    return Model(layout="var", model=model, published=published)


MODELS: dict[str, Model] = {
    **{
        f"{layout.removesuffix('-image')}-{size}": _of_llamagen(layout, size, published)
        for layout, sizes in _OF_LLAMAGEN.items()
        for size, published in sizes.items()
    },
    **{f"var-{size}": _of_var(size, published) for size, published in _VAR.items()},
}
"""LlamaGen (arXiv 2406.06525) and PAR (2412.15119), NAR (2503.10696), ARPG (2503.10568), VAR
(2404.02905); `published` is each paper's own count, classes and all."""


def model_settings(name: str) -> dict[str, Any]:
    """The settings that a name stands for; UserError for one that is unknown."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown model {name!r}; {hint}there are {', '.join(MODELS)}")
    return MODELS[name].settings
