"""A dataset of random codes, as a build leaves it: shards, classes, captions, a tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, TokenSet
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import save_tokenizer
from tokenizer.lookups.vq import VectorLookup
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig

NUM_CLASSES = 101
_STRIDE = 4  # frames and pixels of a cell: nothing is decoded
_CODEBOOK_DIM = 4


def write_random_dataset(
    folder: Path, num_clips: int, grid: tuple[int, int, int], codebook_size: int
) -> Path:
    """`folder`, with clips of `grid` random codes and a tokenizer of random weights for them."""
    tokenizer = _random_tokenizer(grid[1], codebook_size)
    save_tokenizer(tokenizer, folder / "tokenizer")
    codes = TokenSet(
        name="codes",
        kind="codes",
        dtype="uint16",
        codebook_size=codebook_size,
        tokenizer=tokenizer.fingerprint,
    )
    num_frames, side = 1 + _STRIDE * (grid[0] - 1), _STRIDE * grid[1]
    schedule = tokenizer.schedule_for(num_frames, side, side)
    bucket = Bucket(
        name=f"t{num_frames}_h{side}_w{side}",
        num_frames=num_frames,
        height=side,
        width=side,
        schedule=schedule,
    )
    random = np.random.default_rng(0)
    with DatasetWriter(folder, [codes], [bucket]) as writer:
        for number in range(num_clips):
            label = f"class {number % NUM_CLASSES}"
            caption = f"clip of {label}, number {number % 7} of its kind"
            array = random.integers(0, codebook_size, schedule.num_tokens).astype(np.uint16)
            writer.write(f"{number:08d}", {"codes": array}, {"label": label, "caption": caption})
    return folder


def _random_tokenizer(side: int, codebook_size: int) -> Tokenizer:
    """Of one scale, and as small as one can be."""
    config = TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=_STRIDE,
            temporal_patch=_STRIDE,
            spatial_stride=_STRIDE,
            temporal_stride=_STRIDE,
            channels=(8,),
        ),
        quantizer=QuantizerConfig(
            codebook_size=codebook_size, codebook_dim=_CODEBOOK_DIM, scales=(side,), num_phi=1
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = Tokenizer(config)
        codebook = tokenizer.quantizer.codebook
        assert isinstance(codebook, VectorLookup)
        codebook.set_codes(torch.randn(codebook_size, _CODEBOOK_DIM))
    return tokenizer.eval()
