"""The causal autoencoder: pieces equal the whole, an image is a first frame, no look-ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.cosines import block_cosines

CONFIGS = {
    "demo": AutoencoderConfig(channels=(12,)),
    "no time folded": AutoencoderConfig(
        patch=8,
        temporal_patch=1,
        channels=(8, 12, 16),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
    ),
    "stride 8": AutoencoderConfig(
        patch=4,
        temporal_patch=2,
        spatial_stride=8,
        temporal_stride=8,
        channels=(8, 8, 12),
        encoder_blocks=(1, 0, 1),
        decoder_blocks=(0, 2, 1),
    ),
    "group norm": AutoencoderConfig(
        patch=8,
        temporal_patch=2,
        channels=(8, 12),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        norm="group",
        norm_groups=4,
    ),
}


def autoencoder(name, dtype=torch.float64):
    torch.manual_seed(0)
    made = CausalAutoencoder(CONFIGS[name], latent_channels=4)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.to(dtype).requires_grad_(False)


def frames_for(name, num_latent_frames=4, dtype=torch.float64):
    num_frames = 1 + (num_latent_frames - 1) * CONFIGS[name].temporal_stride
    return torch.rand(2, 3, num_frames, 32, 48, dtype=dtype) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_canonical_chunks_give_what_the_whole_clip_gives(name):
    made, frames = autoencoder(name), frames_for(name)
    whole = made.encode(frames)
    stride = CONFIGS[name].spatial_stride
    assert whole.shape == (2, 4, 4, 32 // stride, 48 // stride)
    torch.testing.assert_close(made.encode_canonically(frames), whole, rtol=0, atol=1e-12)
    decoded = made.decode(whole)
    assert decoded.shape == frames.shape
    torch.testing.assert_close(made.decode_canonically(whole), decoded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_chunks_and_whole_agree_to_1e5(name):
    made, frames = autoencoder(name, torch.float32), frames_for(name, dtype=torch.float32)
    whole = made.encode(frames)
    torch.testing.assert_close(made.encode_canonically(frames), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_longer_pieces_give_the_same_latents(name):
    made, frames = autoencoder(name), frames_for(name, num_latent_frames=6)
    stride = CONFIGS[name].temporal_stride
    first, past = made.encode_piece(frames[:, :, : 1 + 2 * stride])
    second, _ = made.encode_piece(frames[:, :, 1 + 2 * stride :], past)
    together = torch.cat([first, second], dim=2)
    torch.testing.assert_close(together, made.encode(frames), rtol=0, atol=1e-12)
    begun, past = made.decode_piece(together[:, :, :3])
    rest, _ = made.decode_piece(together[:, :, 3:], past)
    decoded = torch.cat([begun, rest], dim=2)
    torch.testing.assert_close(decoded, made.decode(together), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_is_the_first_frame_of_a_video(name):
    made, frames = autoencoder(name), frames_for(name)
    latents = made.encode(frames)
    image = made.encode(frames[:, :, :1])
    torch.testing.assert_close(image, latents[:, :, :1], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        made.decode(image), made.decode(latents)[:, :, :1], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_no_latent_and_no_frame_depends_on_the_future(name):
    made, frames = autoencoder(name), frames_for(name)
    stride = CONFIGS[name].temporal_stride
    changed = frames.clone()
    changed[:, :, 1 + stride] += 1
    before, after = made.encode(frames), made.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2:], after[:, :, 2:])
    before, after = made.decode(before), made.decode(after)
    assert torch.equal(before[:, :, : 1 + stride], after[:, :, : 1 + stride])


def test_one_model_serves_two_streams():
    made = autoencoder("demo")
    a, b = frames_for("demo"), frames_for("demo")
    latents_a, past_a = made.encode_piece(a[:, :, :1])
    latents_b, past_b = made.encode_piece(b[:, :, :1])
    more_a, _ = made.encode_piece(a[:, :, 1:], past_a)
    more_b, _ = made.encode_piece(b[:, :, 1:], past_b)
    torch.testing.assert_close(torch.cat([latents_a, more_a], 2), made.encode(a))
    torch.testing.assert_close(torch.cat([latents_b, more_b], 2), made.encode(b))


def test_groups_must_divide_every_width():
    with pytest.raises(ValueError, match=r"norm_groups \(32\) must divide every width .*\(48\)"):
        AutoencoderConfig(channels=(48,), norm="group")
    with pytest.raises(ValueError, match=r"norm_groups \(0\) must be at least 1"):
        AutoencoderConfig(norm_groups=0)


@pytest.mark.parametrize(("time", "side", "count"), [(4, 16, 16), (1, 2, 12), (2, 2, 5)])
def test_block_cosines_are_orthonormal_and_the_first_is_the_brightness(time, side, count):
    rows = block_cosines(time, side, count)
    np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(rows[0], rows[0, 0])


def test_a_block_has_no_more_cosines_than_values():
    with pytest.raises(ValueError, match="12 values has no 13 channels"):
        block_cosines(1, 2, 13)


def test_an_untrained_autoencoder_reconstructs_what_is_slow():
    torch.manual_seed(0)
    made = CausalAutoencoder(CONFIGS["demo"], latent_channels=12)
    colors = torch.rand(2, 3, 1, 1, 1) * 2 - 1
    flat = colors.expand(-1, -1, 9, 32, 32)
    torch.testing.assert_close(made.decode(made.encode(flat)), flat, rtol=0, atol=1e-4)
