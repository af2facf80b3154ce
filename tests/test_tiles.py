"""Tiles give what the whole frame gives, and the halo is what the convolutions see."""

from __future__ import annotations

import pytest
import torch

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer
from tokenizer.presets import PRESETS
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from tokenizer.tiles import (
    decode_in_tiles,
    decoder_halo,
    encode_in_tiles,
    encoder_halo,
    spans,
    tiled_decoder,
    tiled_encoder,
)

CONFIGS = {
    "one stage": AutoencoderConfig(patch=8, spatial_stride=8, channels=(6,), encoder_blocks=(1,)),
    "space halved twice": AutoencoderConfig(
        patch=2,
        temporal_patch=2,
        spatial_stride=8,
        channels=(4, 6, 6),
        encoder_blocks=(1, 0, 1),
        decoder_blocks=(0, 2, 1),
    ),
    "time halved more often than space": AutoencoderConfig(
        patch=4,
        temporal_patch=1,
        spatial_stride=8,
        channels=(4, 4, 6),
        encoder_blocks=(0, 1, 0),
        decoder_blocks=(1, 0, 1),
    ),
}


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.requires_grad_(False)


def autoencoder(name, dtype=torch.float64):
    return randomised(CausalAutoencoder(CONFIGS[name], latent_channels=3)).to(dtype)


def noise(*shape, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tile", [8, 24, 40])
def test_tiles_give_what_whole_frames_give(name, tile):
    made, frames = autoencoder(name), noise(1, 3, 5, 40, 56)
    whole = made.encode_canonically(frames)
    in_tiles = encode_in_tiles(made, frames, tile)
    torch.testing.assert_close(in_tiles, whole, rtol=0, atol=1e-12)
    decoded = made.decode_canonically(whole)
    torch.testing.assert_close(decode_in_tiles(made, whole, tile), decoded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_tiles_and_whole_frames_agree_to_1e5(name):
    made, frames = autoencoder(name, torch.float32), noise(1, 3, 5, 64, 64, dtype=torch.float32)
    whole = made.encode_canonically(frames)
    size = whole.abs().max()
    in_tiles = encode_in_tiles(made, frames, 16)
    torch.testing.assert_close(in_tiles / size, whole / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_in_tiles_is_the_stream_of_whole_frames(name):
    made, frames = autoencoder(name), noise(1, 3, 9, 40, 48)
    whole = made.encode_canonically(frames)
    encode, decode = tiled_encoder(made, 16), tiled_decoder(made, 16)
    past = None
    latents = []
    for piece in (frames[:, :, :1], frames[:, :, 1:5], frames[:, :, 5:]):
        part, past = encode(piece, past)
        latents.append(part)
    torch.testing.assert_close(torch.cat(latents, 2), whole, rtol=0, atol=1e-12)
    past = None
    decoded = []
    for part in latents:
        piece, past = decode(part, past)
        decoded.append(piece)
    expected = made.decode_canonically(whole)
    torch.testing.assert_close(torch.cat(decoded, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoders_halo_is_its_receptive_field_and_no_cell_more(name):
    made = autoencoder(name)
    stride, halo = CONFIGS[name].spatial_stride, encoder_halo(CONFIGS[name])
    cells = 2 * halo + 3
    frames = noise(1, 3, 1, stride * 2, stride * cells)
    before = made.encode(frames)
    left = frames.clone()
    left[..., : stride * (cells - 1 - halo)] += 1
    reached = (made.encode(left) - before).abs().amax(dim=(0, 1, 2, 3)) > 0
    assert not reached[-1]
    assert reached[-2]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoders_halo_is_its_receptive_field_and_no_cell_more(name):
    made = autoencoder(name)
    stride, halo = CONFIGS[name].spatial_stride, decoder_halo(CONFIGS[name])
    cells = 2 * halo + 3
    latents = noise(1, 3, 1, 2, cells)
    before = made.decode(latents)
    left = latents.clone()
    left[..., : cells - 1 - halo] += 1
    reached = (made.decode(left) - before).abs().amax(dim=(0, 1, 2, 3)) > 0
    assert not reached[-stride:].any()
    assert reached[-2 * stride : -stride].any()


def test_the_presets_halos_are_a_few_cells():
    halos = {
        name: (encoder_halo(preset.autoencoder), decoder_halo(preset.autoencoder))
        for name, preset in PRESETS.items()
    }
    assert halos["tiny"] == (1, 3)
    assert all(max(halo) <= 10 for halo in halos.values())


def test_spans_cover_an_axis_once_and_read_no_further_than_it_goes():
    found = spans(10, 4, 2)
    assert [(each.start, each.stop) for each in found] == [(0, 4), (4, 8), (8, 10)]
    assert [(each.first, each.last) for each in found] == [(0, 6), (2, 10), (6, 10)]
    assert [each.core(2) for each in found] == [slice(0, 8), slice(4, 12), slice(4, 8)]


def test_codes_are_the_same_with_tiles():
    config = TokenizerConfig(
        autoencoder=CONFIGS["space halved twice"],
        quantizer=QuantizerConfig(codebook_size=64, codebook_dim=4, scales=(1, 2, 4)),
    )
    made = randomised(Tokenizer(config)).eval()
    made.quantizer.codebook.set_codes(
        torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    )
    frames = torch.randint(256, (1, 5, 64, 96, 3), dtype=torch.uint8)
    codes = made.encode(frames)
    assert torch.equal(made.encode(frames, tile=32), codes)
    schedule = made.schedule_for(5, 64, 96)
    whole, in_tiles = made.decode(codes, schedule), made.decode(codes, schedule, tile=16)
    assert (whole.int() - in_tiles.int()).abs().max() <= 1


def test_a_norm_over_the_frame_refuses_tiles():
    config = AutoencoderConfig(channels=(32,), norm="group")
    made = CausalAutoencoder(config, latent_channels=4)
    for attempt in (tiled_encoder, tiled_decoder):
        with pytest.raises(UserError, match=r"norm is group: .*encode whole frames"):
            attempt(made, 64)


@pytest.mark.parametrize("tile", [0, 4, 20])
def test_a_tile_off_the_grid_is_refused_with_the_nearest_ones(tile):
    with pytest.raises(UserError, match=rf"tile \({tile}\) must be a multiple of 8 pixels"):
        encode_in_tiles(autoencoder("one stage"), noise(1, 3, 1, 32, 32), tile)
