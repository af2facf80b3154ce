"""What a frozen text tower says of captions: made once, kept in a file of the run.

A caption of c pieces has c rows of features and one vector. Rows of all captions lie one after
another, float16: 100,000 captions of 12 pieces of 512 channels are 1.2 GB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenizer.settings import UserError
from training.vocabulary import TowerShape

FEATURES_FILE = "captions.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class CaptionFeatures:
    """Features of captions by the tower `model` with the weights `sha256`; on the CPU."""

    captions: tuple[str, ...]
    counts: Int[Tensor, " c"]
    pieces: Float[Tensor, "n d"]
    pooled: Float[Tensor, "c e"]
    model: str
    sha256: str

    @property
    def tower(self) -> TowerShape:
        """What a generator must know of the tower; its longest caption is the longest of these."""
        return TowerShape(
            model=self.model,
            sha256=self.sha256,
            num_pieces=int(self.counts.max()),
            width=self.pieces.shape[1],
            pooled_width=self.pooled.shape[1],
        )

    def padded(
        self, indices: Int[Tensor, " b"], length: int
    ) -> tuple[Float[Tensor, "b p d"], Bool[Tensor, "b p"]]:
        """The rows of some captions, `length` each, and which of them there are."""
        starts = (self.counts.cumsum(0) - self.counts)[indices]
        at = torch.arange(length)
        valid = at < self.counts[indices, None]
        return self.pieces[torch.where(valid, starts[:, None] + at, 0)], valid

    def extended(self, other: CaptionFeatures) -> CaptionFeatures:
        """These captions and, behind them, others of the same tower."""
        return CaptionFeatures(
            captions=self.captions + other.captions,
            counts=torch.cat([self.counts, other.counts]),
            pieces=torch.cat([self.pieces, other.pieces]),
            pooled=torch.cat([self.pooled, other.pooled]),
            model=self.model,
            sha256=self.sha256,
        )

    def __deepcopy__(self, memo: dict) -> CaptionFeatures:
        """Itself: it never changes, and may be large."""
        return self

    def save(self, path: Path) -> None:
        """Writes the file aside and renames it."""
        from safetensors.torch import save_file

        about = {"model": self.model, "sha256": self.sha256, "captions": json.dumps(self.captions)}
        partial = path.with_name(f".{path.name}.partial")
        tensors = {"counts": self.counts, "pieces": self.pieces, "pooled": self.pooled}
        save_file(tensors, partial, about)
        partial.replace(path)


def load_features(path: Path) -> CaptionFeatures:
    """The inverse of `save`; UserError when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in ("counts", "pieces", "pooled")}
        return CaptionFeatures(
            captions=tuple(json.loads(about["captions"])),
            model=about["model"],
            sha256=about["sha256"],
            **tensors,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no features of captions that can be read ({error})") from None
