"""Layouts of published tokenizers, as data: what a family calls what we name otherwise; no torch.

    names = Names(layout=LAYOUTS["var"], num_levels=5, sharing="some")
    names.of("autoencoder.decoder.norm.bias")              # ("decoder.norm_out.bias",)

One of our tensors may be several of theirs, stacked on the first axis: LlamaGen keeps an
attention's query, key and value apart. `PUBLISHED` are the configurations of the published files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import to_dict


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family names the tensors of the same model."""

    detected_by: str
    """A prefix that only this family has."""
    renamed: tuple[tuple[str, str], ...]
    """Regular expressions over our names and their replacements, applied in this order."""
    decoder_from_finest: bool
    """Whether the decoder's levels are counted from the finest; ours are in order of execution."""
    attention: tuple[str, ...]
    """Their pieces of our `qkv`, in order."""
    phi: Mapping[str, str]
    """Prefixes of the quantizer's convolutions, by how scales share them: `one` for all scales,
    `some`, or `each` its own; {} is the number."""
    usage: str
    """A buffer of statistics that no code and no pixel depends on."""


_SHARED = (
    (r"^autoencoder\.to_latents\.", "quant_conv."),
    (r"^autoencoder\.from_latents\.", "post_quant_conv."),
    (r"^autoencoder\.", ""),
    (r"^(encoder|decoder)\.enter\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.leave\.", r"\1.conv_out."),
    (r"^(encoder\..*)\.resample\.", r"\1.downsample.conv."),
    (r"^(decoder\..*)\.resample\.", r"\1.upsample.conv."),
    (r"\.attentions\.", ".attn."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.out\.", ".proj_out."),
    (r"^quantizer\.codebook\.", "quantize.embedding."),
)

LAYOUTS: dict[str, Layout] = {
    "var": Layout(
        detected_by="encoder.down.",
        renamed=(
            *_SHARED,
            (r"^encoder\.levels\.", "encoder.down."),
            (r"^decoder\.levels\.", "decoder.up."),
            (r"\.blocks\.", ".block."),
            (r"\.middle\.0\.", ".mid.block_1."),
            (r"\.middle\.1\.", ".mid.attn_1."),
            (r"\.middle\.2\.", ".mid.block_2."),
        ),
        decoder_from_finest=True,
        attention=("qkv",),
        phi={
            "one": "quantize.quant_resi.qresi.",
            "some": "quantize.quant_resi.qresi_ls.{}.",
            "each": "quantize.quant_resi.{}.",
        },
        usage="quantize.ema_vocab_hit_SV",
    ),
    "llamagen": Layout(
        detected_by="encoder.conv_blocks.",
        renamed=(
            *_SHARED,
            (r"^(encoder|decoder)\.levels\.", r"\1.conv_blocks."),
            (r"\.blocks\.", ".res."),
            (r"\.middle\.", ".mid."),
        ),
        decoder_from_finest=False,
        attention=("q", "k", "v"),
        phi={},
        usage="quantize.codebook_used",
    ),
}

TRAINING_ONLY = r"^(loss|discriminator|disc|perceptual|optimizer)\w*\."
"""Keys of what a tokenizer was trained with, beside its weights."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Our names to theirs, for a model of `num_levels` levels."""

    layout: Layout
    num_levels: int
    sharing: str = "some"
    """Which of the layout's prefixes the quantizer's convolutions have."""

    def of(self, name: str) -> tuple[str, ...]:
        """Their names of one of our tensors, or of a prefix of ours that ends in a dot."""
        if self.layout.decoder_from_finest:
            name = re.sub(r"(?<=decoder\.levels\.)\d+", self._from_finest, name)
        if self.layout.phi and name.startswith("quantizer.phi."):
            _, _, number, kind = name.split(".")
            return (self.layout.phi[self.sharing].format(number) + kind,)
        for ours, theirs in self.layout.renamed:
            name = re.sub(ours, theirs, name)
        if ".qkv." not in name:
            return (name,)
        return tuple(name.replace(".qkv.", f".{piece}.") for piece in self.layout.attention)

    def _from_finest(self, index: re.Match[str]) -> str:
        return str(self.num_levels - 1 - int(index[0]))


_SPHERE = QuantizerConfig(
    codebook_size=16384,
    codebook_dim=8,
    metric="sphere",
    learned_by="gradient",
    scales=(16,),
    num_phi=1,
    phi_ratio=0.0,
)

PUBLISHED: dict[str, TokenizerConfig] = {
    "var-vqvae": TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(),
        quantizer=QuantizerConfig(
            codebook_size=4096,
            codebook_dim=32,
            scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
            num_phi=4,
            learned_by="gradient",
        ),
    ),
    "llamagen-vq16": TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(channels=128, z_channels=256, kernel_size=1),
        quantizer=_SPHERE,
    ),
    "llamagen-vq8": TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(
            channels=128, channel_multipliers=(1, 2, 2, 4), z_channels=256, kernel_size=1
        ),
        quantizer=replace(_SPHERE, scales=(32,)),
    ),
}
"""`vae_ch160v4096z32.pth`, `vq_ds16_c2i.pt` and `vq_ds8_c2i.pt`, at images of 256 x 256."""


def settings_of(preset: str) -> dict[str, Any]:
    """A published configuration as what to ask for."""
    values = to_dict(PUBLISHED[preset])
    return {
        f"{section}.{key}": value
        for section in ("image", "quantizer")
        for key, value in values[section].items()
    }
