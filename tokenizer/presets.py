"""Tokenizers by name, from the demo's to one for 256 x 256 pixels; torch-free."""

from __future__ import annotations

from dataclasses import replace

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.quantizer_config import QuantizerConfig

_SMALL_CODES = QuantizerConfig(
    codebook_size=4096,
    codebook_dim=16,
    scales=(1, 2, 3, 4, 6, 8),
    num_phi=4,
    clip_latent_frames=20,
)
_BASE_CODES = QuantizerConfig(
    codebook_size=16384,
    codebook_dim=32,
    scales=(1, 2, 3, 4, 6, 8, 10, 13, 16),
    num_phi=4,
    clip_latent_frames=20,
)

PRESETS: dict[str, TokenizerConfig] = {
    "tiny": TokenizerConfig(),
    "small": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=4,
            temporal_patch=2,
            channels=(96, 192, 256),
            encoder_blocks=(1, 1, 2),
            decoder_blocks=(2, 2, 2),
        ),
        quantizer=_SMALL_CODES,
    ),
    "base": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=2,
            temporal_patch=1,
            channels=(128, 256, 384, 512),
            encoder_blocks=(2, 2, 2, 2),
            decoder_blocks=(3, 3, 3, 3),
        ),
        quantizer=_BASE_CODES,
    ),
    "tiny-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(patch=8, spatial_stride=8),
        quantizer=QuantizerConfig(scales=(1, 2, 4, 8)),
    ),
    "small-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=4,
            temporal_patch=2,
            spatial_stride=8,
            channels=(128, 256),
            encoder_blocks=(1, 2),
            decoder_blocks=(2, 2),
        ),
        quantizer=replace(_SMALL_CODES, scales=(1, 2, 3, 4, 6, 8, 10, 13, 16)),
    ),
    "base-s8": TokenizerConfig(
        autoencoder=AutoencoderConfig(
            patch=2,
            temporal_patch=1,
            spatial_stride=8,
            channels=(128, 256, 512),
            encoder_blocks=(2, 2, 2),
            decoder_blocks=(3, 3, 3),
        ),
        quantizer=replace(_BASE_CODES, scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    ),
}
"""tiny: the demo, 64 x 64; small: for 128 x 128; base: for 256 x 256. A latent frame stands for 4
frames and a cell for 16 x 16 pixels, or 8 x 8 in those that end in s8. Behind the first frame,
small and base have a pyramid for every 80 frames, so that videos of any length stream."""
