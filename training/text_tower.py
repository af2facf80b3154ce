"""A frozen text tower of open_clip: captions to features, with weights from a file.

    tower = load_tower("ViT-B-32", "open_clip_model.safetensors", sha256=None)
    told = tower.encode(["a red 3 moving left"], max_pieces=64)

A caption has a feature per word piece, from its start to its end token, behind the tower's last
norm, and one vector for the whole, which CLIP compares with images. Only the text half of a file of
weights is read. open_clip is imported when a tower is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.checkpoint import read_checkpoint
from tokenizer.settings import UserError
from training.caption_features import CaptionFeatures

_BATCH = 64


class TextTower:
    """One of open_clip's text transformers; `model` and `sha256`, of the file, say which."""

    def __init__(self, model: str, sha256: str, network: Any, tokenize: Any) -> None:
        self.model = model
        self.sha256 = sha256
        self._network = network.eval().requires_grad_(False)
        self._network.output_tokens = True
        self._tokenize = tokenize

    @torch.no_grad()
    def encode(self, captions: Sequence[str], max_pieces: int) -> CaptionFeatures:
        """The features of captions, of which the first `max_pieces` pieces are kept."""
        pieces, counts, pooled = [], [], []
        for start in range(0, len(captions), _BATCH):
            ids = self._tokenize(list(captions[start : start + _BATCH]))
            whole, each = self._network(ids)
            pooled.append(F.normalize(whole, dim=-1) * whole.shape[-1] ** 0.5)
            for row, features in zip(ids, each):
                count = min(int(row.argmax()) + 1, max_pieces)  # the end token has the largest id
                pieces.append(features[:count])
                counts.append(count)
        return CaptionFeatures(
            captions=tuple(captions),
            counts=torch.tensor(counts),
            pieces=torch.cat(pieces).half(),
            pooled=torch.cat(pooled).half(),
            model=self.model,
            sha256=self.sha256,
        )


def load_tower(model: str, weights: str | Path | None, sha256: str | None) -> TextTower:
    """The text tower that open_clip calls `model`; `sha256` says which weights they must be.

    UserError when there are none, they are others, or open_clip is missing.
    """
    if weights is None:
        raise UserError(
            f"captions need the weights of open_clip's text tower {model}: give their file with "
            "--condition.weights in training, --text_weights in sampling"
        )
    checkpoint = read_checkpoint(weights)
    if sha256 is not None and checkpoint.sha256 != sha256:
        raise UserError(
            f"{weights}: other weights (sha256 {checkpoint.sha256}) than those that are needed "
            f"({sha256})"
        )
    try:
        import open_clip
        from open_clip.model import _build_text_tower
    except ImportError:
        raise UserError(
            "condition clip_text needs open_clip: pip install open_clip_torch"
        ) from None
    config = open_clip.get_model_config(model)
    if config is None or {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
        raise UserError(
            f"condition.model ({model!r}) must be a model of open_clip with a text tower and word "
            "pieces of its own, such as ViT-B-32 or ViT-L-14"
        )
    quick = bool(config.get("quick_gelu"))
    network = _build_text_tower(config["embed_dim"], config["text_cfg"], quick_gelu=quick)
    network.load_state_dict(_text_half(weights, model, network.state_dict(), checkpoint.tensors))
    return TextTower(model, checkpoint.sha256, network, open_clip.get_tokenizer(model))


def _text_half(
    weights: str | Path, model: str, expected: dict[str, Tensor], found: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tower's own tensors among those of a CLIP model, where they may have a prefix."""
    plain = {name.removeprefix("module."): value for name, value in found.items()}
    if any(name.startswith("text.") for name in plain):
        plain = {name.removeprefix("text."): value for name, value in plain.items()}
    missing = [name for name in expected if name not in plain]
    misshapen = [n for n in expected if n in plain and plain[n].shape != expected[n].shape]
    for what, names in (("lacks", missing), ("has misshapen", misshapen)):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"{weights}: not the weights of {model}: {what} {len(names)} tensors ({listed})"
            )
    return {name: plain[name].float() for name in expected}
