"""How a tokenizer begins: from clips, so that the first step already reconstructs.

    begin(tokenizer, chunks, generator)      # chunks: float [b, 3, t, h, w] each, in [-1, 1]

The linear path of the causal autoencoder becomes the principal components of blocks of pixels, and
the codebook k-means of what the quantizer would be asked. The chunks are gone through twice: one of
them is held at a time, and at most `MOST_BLOCKS` blocks of pixels, however large the clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.model import Tokenizer

MOST_BLOCKS = 1 << 15
"""Of 4 x 16 x 16 pixels they are 400 MB, and ten times as many as they have dimensions."""


class Chunks(Protocol):
    """Clips in pieces that fit into memory, as a list of tensors has them, or read when asked."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Float[Tensor, "b 3 t h w"]]: ...


@torch.no_grad()
def begin(tokenizer: Tokenizer, chunks: Chunks, generator: torch.Generator) -> None:
    """Initialises from clips in [-1, 1]; `chunks` must give the same ones each time."""
    if isinstance(tokenizer.autoencoder, CausalAutoencoder):
        blocks = _some_blocks(tokenizer.autoencoder, chunks, generator)
        tokenizer.autoencoder.begin_linear(blocks, generator)
    _begin_codebook(tokenizer, chunks, generator)


def _some_blocks(
    autoencoder: CausalAutoencoder,
    chunks: Chunks,
    generator: torch.Generator,
) -> Float[Tensor, "m n"]:
    """All blocks of the clips, or an equal part of `MOST_BLOCKS` drawn from each chunk."""
    most = MOST_BLOCKS // len(chunks)
    kept = []
    for frames in chunks:
        blocks = autoencoder.blocks(frames)
        if len(blocks) > most:
            drawn = torch.randperm(len(blocks), generator=generator, device=generator.device)
            blocks = blocks[drawn[:most].to(blocks.device)]
        kept.append(blocks)
    return torch.cat(kept)


def _begin_codebook(tokenizer: Tokenizer, chunks: Chunks, generator: torch.Generator) -> None:
    """The first codes, and gains of scales, from the latents of all clips."""
    latents = []
    for frames in chunks:
        latents.append(tokenizer.autoencoder.encode(frames))
        schedule = tokenizer.schedule_for(*frames.shape[2:])
    tokenizer.quantizer.begin(torch.cat(latents), schedule, generator)
