"""The causal 3-D autoencoder: clips of 1 + k * stride frames to 1 + k latent frames, and back.

Two paths are added in each direction: one matrix per block of pixels, which begins as the slowest
block cosines, and a convolutional network, which begins as zero. So it reconstructs from the first
step. Frame 0 stands alone: it is the image at the beginning of every video.

    latents, past = autoencoder.encode_piece(frames[:, :, :1])
    more, past = autoencoder.encode_piece(frames[:, :, 1:5], past)

The canonical encoding runs piece by piece: frame 0, then `temporal_stride` frames at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.causal import (
    Activation,
    CausalConv,
    Fold,
    GroupActivation,
    MakeActivation,
    Past,
    ResidualBlock,
    SideBySide,
    Stream,
    Unfold,
    Upsample,
)
from tokenizer.cosines import block_cosines

LATENT_GAIN = 4.0
"""The first latent channel begins as this multiple of a block's mean, about one in size."""


class CausalAutoencoder(nn.Module):
    """Frames [b, 3, t, h, w] in [-1, 1] to latents [b, c, 1 + (t - 1) / stride, h / s, w / s]."""

    def __init__(self, config: AutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.spatial_stride = config.spatial_stride
        self.temporal_stride = config.temporal_stride
        block = config.temporal_stride, config.spatial_stride
        fold, unfold = Fold(*block, latent_channels), Unfold(*block, latent_channels)
        cosines = torch.from_numpy(block_cosines(*block, latent_channels)).float()
        gain = LATENT_GAIN * cosines.shape[1] ** -0.5
        _begin_as(fold.linear, cosines * gain / fold.input_scale)
        _begin_as(unfold.linear, cosines.T / gain)
        self.encoder = SideBySide([fold, _down(config, latent_channels)])
        self.decoder = SideBySide([unfold, _up(config, latent_channels)])

    def blocks(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "m n"]:
        """The pixels behind each latent cell, as the linear path takes them."""
        return self._linear_path[0].blocks(frames).flatten(0, 3)

    @torch.no_grad()
    def begin_linear(self, blocks: Float[Tensor, "m n"], generator: torch.Generator) -> None:
        """Sets the linear path to the principal components of these blocks.

        No linear code of as many channels reconstructs them better, and distances between latents
        begin as distances between pixels, which is what the quantizer measures. Latents begin with
        a mean square of one.
        """
        fold, unfold = self._linear_path
        mean = blocks.mean(dim=0)
        components, size = principal_components(blocks - mean, fold.linear.out_features, generator)
        fold.linear.weight.copy_(components / size / fold.input_scale)
        fold.linear.bias.copy_(-(components @ mean) / size)
        unfold.linear.weight.copy_(components.T * size)
        unfold.linear.bias.copy_(mean)

    @property
    def last_weights(self) -> list[Tensor]:
        """The weights that the decoder's pixels come from directly."""
        _, unfold = self._linear_path
        up = self.decoder.layers[1]
        assert isinstance(up, Stream)
        last = up.layers[-1]
        assert isinstance(last, Unfold)
        return [unfold.linear.weight, last.linear.weight]

    @property
    def _linear_path(self) -> tuple[Fold, Unfold]:
        fold, unfold = self.encoder.layers[0], self.decoder.layers[0]
        assert isinstance(fold, Fold)
        assert isinstance(unfold, Unfold)
        return fold, unfold

    def encode(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """The whole clip in one pass: what training uses; equals `encode_canonically`."""
        return self.encoder(frames)[0]

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """The whole clip in one pass; not clipped to [-1, 1]."""
        return self.decoder(latents)[0]

    def encode_piece(
        self, frames: Float[Tensor, "b 3 t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c t2 h2 w2"], Past]:
        """The next frames of a stream, and what to give with those after them.

        A stream begins with 1 + k * stride frames and goes on with multiples of the stride.
        """
        return self.encoder(frames, past)

    def decode_piece(
        self, latents: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b 3 t2 h2 w2"], Past]:
        """The next latent frames of a stream, any number, and what to give with those after."""
        return self.decoder(latents, past)

    def encode_canonically(
        self, frames: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        """Frame 0, then chunks of `temporal_stride` frames: the encoding that codes are made of."""
        pieces = [frames[:, :, :1], *frames[:, :, 1:].split(self.temporal_stride, dim=2)]
        return _joined(self.encoder, [each for each in pieces if each.shape[2]])

    def decode_canonically(
        self, latents: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """One latent frame after another."""
        return _joined(self.decoder, latents.split(1, dim=2))


def _joined(step: nn.Module, pieces: Sequence[Tensor]) -> Tensor:
    past: Past = None
    parts = []
    for piece in pieces:
        part, past = step(piece, past)
        parts.append(part)
    return torch.cat(parts, dim=2)


def principal_components(
    vectors: Float[Tensor, "m n"], count: int, generator: torch.Generator, iterations: int = 6
) -> tuple[Float[Tensor, "count n"], Float[Tensor, ""]]:
    """The `count` leading components of centred vectors as orthonormal rows, and the root mean
    square of the projections, by subspace iteration (Halko, Martinsson and Tropp, 2011)."""
    wanted = min(count + 8, *vectors.shape)
    drawn = torch.randn(vectors.shape[1], wanted, generator=generator).to(vectors)
    basis = torch.linalg.qr(drawn)[0]
    for _ in range(iterations):
        basis = torch.linalg.qr(vectors.T @ (vectors @ basis))[0]
    projected = vectors @ basis
    _, directions = torch.linalg.eigh(projected.T @ projected)
    components = (basis @ directions.flip(1)[:, :count]).T
    size = (vectors @ components.T).square().mean().sqrt().clamp(min=1e-6)
    return components, size


def _down(config: AutoencoderConfig, latent_channels: int) -> Stream:
    widths, activation = config.channels, _activation(config)
    layers: list[nn.Module] = [Fold(config.temporal_patch, config.patch, widths[0])]
    for index, blocks in enumerate(config.encoder_blocks):
        layers += [ResidualBlock(widths[index], activation) for _ in range(blocks)]
        if index + 1 < len(widths):
            layers.append(CausalConv(widths[index], widths[index + 1], *config.halvings[index]))
    last = CausalConv(widths[-1], latent_channels)
    _begin_as_zero(last.conv)
    return Stream([*layers, activation(widths[-1]), last])


def _up(config: AutoencoderConfig, latent_channels: int) -> Stream:
    widths, activation = config.channels, _activation(config)
    layers: list[nn.Module] = [CausalConv(latent_channels, widths[-1])]
    for index in reversed(range(len(widths))):
        blocks = config.decoder_blocks[index]
        layers += [ResidualBlock(widths[index], activation) for _ in range(blocks)]
        if index > 0:
            layers.append(Upsample(*config.halvings[index - 1]))
            layers.append(CausalConv(widths[index], widths[index - 1]))
    last = Unfold(config.temporal_patch, config.patch, widths[0])
    _begin_as_zero(last.linear)
    return Stream([*layers, activation(widths[0]), last])


def _activation(config: AutoencoderConfig) -> MakeActivation:
    if config.norm == "group":
        return partial(GroupActivation, groups=config.norm_groups)
    return Activation


def _begin_as(linear: nn.Linear, weight: Float[Tensor, "n c"]) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()


def _begin_as_zero(layer: nn.Linear | nn.Conv3d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
