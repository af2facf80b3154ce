"""The table of presets in tokenizer/README.md says what the presets are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tokenizer.model import Tokenizer
from tokenizer.presets import PRESETS
from tokenizer.tiles import decoder_halo, encoder_halo

README = Path(__file__).parent.parent / "tokenizer" / "README.md"
SIDES = {"tiny": 64, "small": 128, "base": 256}


def row(name: str) -> str:
    config = PRESETS[name]
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    encoder, decoder = (
        sum(each.numel() for each in part.parameters())
        for part in (tokenizer.autoencoder.encoder, tokenizer.autoencoder.decoder)
    )
    autoencoder, quantizer = config.autoencoder, config.quantizer
    side = SIDES[name.partition("-")[0]]
    schedules = [config.schedule_for(num_frames, side, side) for num_frames in (1, 17)]
    cells = side // autoencoder.spatial_stride
    bits = schedules[1].num_tokens * math.log2(quantizer.codebook_size) / (17 * side**2)
    columns = [
        f"`{name}`",
        f"{autoencoder.temporal_stride} x {autoencoder.spatial_stride} x "
        f"{autoencoder.spatial_stride}",
        f"{encoder / 1e6:.2f} M",
        f"{decoder / 1e6:.2f} M",
        f"{quantizer.codebook_size:,} x {quantizer.codebook_dim}",
        f"{encoder_halo(autoencoder)}, {decoder_halo(autoencoder)}",
        f"17 x {side} x {side}",
        f"{schedules[1].num_latent_frames} x {cells} x {cells}",
        f"{schedules[0].num_tokens:,}",
        f"{schedules[1].num_tokens:,}",
        f"{bits:.3f}",
    ]
    return f"| {' | '.join(columns)} |"


def test_there_are_three_sizes_at_two_strides() -> None:
    strides = {
        name: (config.autoencoder.temporal_stride, config.autoencoder.spatial_stride)
        for name, config in PRESETS.items()
    }
    assert strides == {
        name + suffix: (4, stride)
        for suffix, stride in (("", 16), ("-s8", 8))
        for name in ("tiny", "small", "base")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_the_readme_tells_each_presets_size_and_codes(name: str) -> None:
    assert row(name) in README.read_text().splitlines()


def test_a_preset_means_what_it_meant() -> None:
    """Tokenizers were trained with these."""
    assert PRESETS["tiny"].autoencoder.channels == (128,)
    assert PRESETS["small"].autoencoder.channels == (96, 192, 256)
    assert PRESETS["base"].autoencoder.channels == (128, 256, 384, 512)
