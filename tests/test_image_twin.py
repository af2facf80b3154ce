"""The image autoencoder against a slow twin: the published description, written over their keys.

The twin knows neither our modules nor our names, so key maps are tested too, for shapes that no
fixture has: other multipliers in the decoder, one level, wide images, codes of any length.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.layouts import LAYOUTS, Names
from tokenizer.model import Tokenizer
from tokenizer.published import load_published, to_published
from tokenizer.quantizer_config import QuantizerConfig


class Twin:
    """A state dict of VAR or LlamaGen, run as their papers' code describes it."""

    def __init__(self, state, is_var):
        self.state = state
        self.is_var = is_var

    def conv(self, x, key, **kwargs):
        return functional.conv2d(
            x, self.state[f"{key}.weight"], self.state[f"{key}.bias"], **kwargs
        )

    def norm(self, x, key):
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return functional.group_norm(x, 32, weight, bias, 1e-6)

    def block(self, x, key):
        y = self.conv(functional.silu(self.norm(x, f"{key}.norm1")), f"{key}.conv1", padding=1)
        y = self.conv(functional.silu(self.norm(y, f"{key}.norm2")), f"{key}.conv2", padding=1)
        return y + (self.conv(x, f"{key}.nin_shortcut") if self.has(f"{key}.nin_shortcut") else x)

    def attention(self, x, key):
        y = self.norm(x, f"{key}.norm")
        if self.is_var:
            q, k, v = self.conv(y, f"{key}.qkv").chunk(3, dim=1)
        else:
            q, k, v = (self.conv(y, f"{key}.{name}") for name in "qkv")
        scores = torch.einsum("bchw,bcij->bhwij", q, k) * x.shape[1] ** -0.5
        share = scores.flatten(3).softmax(dim=-1).view_as(scores)
        return x + self.conv(torch.einsum("bhwij,bcij->bchw", share, v), f"{key}.proj_out")

    def has(self, prefix):
        return any(name.startswith(f"{prefix}.") for name in self.state)

    def level(self, x, key):
        blocks, attentions = ("block", "attn") if self.is_var else ("res", "attn")
        index = 0
        while self.has(f"{key}.{blocks}.{index}"):
            x = self.block(x, f"{key}.{blocks}.{index}")
            if self.has(f"{key}.{attentions}.{index}"):
                x = self.attention(x, f"{key}.{attentions}.{index}")
            index += 1
        if self.has(f"{key}.downsample"):
            return self.conv(functional.pad(x, (0, 1, 0, 1)), f"{key}.downsample.conv", stride=2)
        if self.has(f"{key}.upsample"):
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return self.conv(x, f"{key}.upsample.conv", padding=1)
        return x

    def middle(self, x, half):
        names = ("block_1", "attn_1", "block_2") if self.is_var else ("0", "1", "2")
        x = self.block(x, f"{half}.mid.{names[0]}")
        x = self.attention(x, f"{half}.mid.{names[1]}")
        return self.block(x, f"{half}.mid.{names[2]}")

    def levels(self, half):
        name = {"encoder": "down", "decoder": "up"}[half] if self.is_var else "conv_blocks"
        found = sorted(
            {int(key.split(".")[2]) for key in self.state if key.startswith(f"{half}.{name}.")}
        )
        backwards = self.is_var and half == "decoder"
        return [f"{half}.{name}.{index}" for index in (found[::-1] if backwards else found)]

    def out(self, x, half):
        return self.conv(
            functional.silu(self.norm(x, f"{half}.norm_out")), f"{half}.conv_out", padding=1
        )

    def encode(self, image):
        x = self.conv(image, "encoder.conv_in", padding=1)
        for key in self.levels("encoder"):
            x = self.level(x, key)
        return self.conv(
            self.out(self.middle(x, "encoder"), "encoder"), "quant_conv", padding="same"
        )

    def decode(self, latents):
        x = self.conv(latents, "post_quant_conv", padding="same")
        x = self.middle(self.conv(x, "decoder.conv_in", padding=1), "decoder")
        for key in self.levels("decoder"):
            x = self.level(x, key)
        return self.out(x, "decoder")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("multipliers", "decoder_multipliers", "num_blocks", "kernel_size"),
    [((1, 2), None, 1, 3), ((1, 1, 3), (2, 1, 1), 2, 1), ((2,), None, 1, 5)],
)
def test_it_is_the_published_one(
    layout, multipliers, decoder_multipliers, num_blocks, kernel_size, tmp_path
):
    torch.manual_seed(0)
    config = TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(
            channels=32,
            channel_multipliers=multipliers,
            decoder_multipliers=decoder_multipliers,
            num_blocks=num_blocks,
            z_channels=6,
            kernel_size=kernel_size,
        ),
        quantizer=QuantizerConfig(
            codebook_size=16, codebook_dim=4, scales=(1, 2, 4, 8), num_phi=4, learned_by="gradient"
        ),
    )
    made = Tokenizer(config).eval().requires_grad_(False)
    for parameter in made.parameters():  # norms and biases too
        parameter.add_(0.1 * torch.randn_like(parameter))
    names = Names(layout=LAYOUTS[layout], num_levels=len(multipliers))
    twin = Twin(to_published(names, made.weights()), is_var=layout == "var")
    image = torch.randn(2, 3, 8, 12)
    latents = made.autoencoder.encode(image[:, :, None])[:, :, 0]
    torch.testing.assert_close(latents, twin.encode(image), rtol=1e-4, atol=1e-5)
    images = made.autoencoder.decode(latents[:, :, None])[:, :, 0]
    torch.testing.assert_close(images, twin.decode(latents), rtol=1e-4, atol=1e-5)
    if layout == "var":
        torch.save(twin.state, tmp_path / "a.pth")
        asked = {"quantizer.scales": (1, 2, 4, 8)}
        assert load_published(tmp_path / "a.pth", asked).tokenizer.config == config


@pytest.mark.parametrize("metric", ["sphere", "l2"])
def test_llamagen_seeks_codes_with_and_without_lengths_of_one(metric):
    torch.manual_seed(0)
    config = TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(channels=32, channel_multipliers=(1, 1), num_blocks=1),
        quantizer=QuantizerConfig(
            codebook_size=16,
            codebook_dim=4,
            scales=(4,),
            num_phi=1,
            phi_ratio=0.0,
            metric=metric,
            learned_by="gradient",
        ),
    )
    quantizer = Tokenizer(config).quantizer
    quantizer.codebook.set_codes(torch.randn(16, 4) * torch.rand(16, 1))
    latents = torch.randn(2, 4, 1, 4, 6)
    codes = quantizer.encode(latents, config.schedule_for(1, 8, 12))
    rows, table = latents.flatten(2).movedim(1, 2), quantizer.codebook.weight
    if metric == "sphere":
        rows, table = functional.normalize(rows, dim=-1), functional.normalize(table, dim=-1)
    expected = (rows[:, :, None] - table).square().sum(dim=-1).argmin(dim=-1)
    assert torch.equal(codes, expected)
    found = quantizer.decode(codes, config.schedule_for(1, 8, 12))
    torch.testing.assert_close(found.flatten(2).movedim(1, 2), table[codes])
