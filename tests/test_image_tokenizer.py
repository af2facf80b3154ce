"""The image autoencoder and the tokenizer around it: every frame alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.beginning import begin
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.image import ImageAutoencoder
from tokenizer.learner import Learner
from tokenizer.loss_config import DiscriminatorConfig, LossConfig
from tokenizer.model import Tokenizer, signed
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError, from_dict, to_dict

SMALL = TokenizerConfig(
    architecture="image",
    image=ImageAutoencoderConfig(
        channels=32, channel_multipliers=(1, 2), num_blocks=1, z_channels=8
    ),
    quantizer=QuantizerConfig(codebook_size=32, codebook_dim=4, scales=(1, 2, 4), num_phi=2),
)


def tokenizer(config=SMALL):
    torch.manual_seed(0)
    made = Tokenizer(config)
    made.quantizer.codebook.set_codes(0.3 * torch.randn_like(made.quantizer.codebook.weight))
    return made.eval()


def frames_for(batch=2, num_frames=3, height=8, width=8):
    torch.manual_seed(1)
    return torch.randint(256, (batch, num_frames, height, width, 3), dtype=torch.uint8)


def test_every_frame_is_an_image_pyramid_of_its_own():
    made, frames = tokenizer(), frames_for()
    schedule = made.schedule_for(3, 8, 8)
    assert [len(pyramid) for pyramid in schedule.pyramids] == [3, 3, 3]
    codes = made.encode(frames)
    assert codes.shape == (2, 3 * 21)
    images = [made.encode(frames[:, index : index + 1]) for index in range(3)]
    assert torch.equal(codes, torch.cat(images, dim=1))


def test_codes_become_frames_again_from_any_number_of_scales():
    made, frames = tokenizer(), frames_for()
    codes, schedule = made.encode(frames), made.schedule_for(3, 8, 8)
    for num_scales in (1, 2, None):
        decoded = made.decode(codes, schedule, num_scales)
        assert decoded.shape == frames.shape
        assert decoded.dtype == torch.uint8
    whole = made.decode(codes, schedule)
    first = made.decode(codes[:, :21], made.schedule_for(1, 8, 8))
    assert torch.equal(whole[:, :1], first)


def test_all_frames_at_once_are_what_frame_by_frame_gives():
    made, frames = tokenizer().autoencoder, signed(frames_for())
    with torch.no_grad():
        latents = made.encode(frames)
        torch.testing.assert_close(latents, made.encode_canonically(frames))
        torch.testing.assert_close(made.decode(latents), made.decode_canonically(latents))


def test_other_aspects_and_levels_get_grids_in_proportion():
    made = tokenizer()
    assert made.config.spatial_stride == 2
    assert made.config.temporal_stride == 1
    assert made.encode(frames_for(num_frames=1, height=8, width=12)).shape == (2, 2 + 6 + 24)
    config = ImageAutoencoderConfig(channels=32, channel_multipliers=(1, 1, 1), num_blocks=1)
    model = ImageAutoencoder(config, latent_channels=4)
    latents = model.encode(torch.zeros(1, 3, 2, 8, 12))
    assert latents.shape == (1, 4, 2, 2, 3)
    assert model.decode(latents).shape == (1, 3, 2, 8, 12)


def test_attention_stands_at_the_coarsest_level_only_and_the_decoder_has_a_block_more():
    model = tokenizer().autoencoder
    assert [len(level.attentions) for level in model.encoder.levels] == [0, 1]
    assert [len(level.attentions) for level in model.decoder.levels] == [2, 0]
    assert [len(level.blocks) for level in model.decoder.levels] == [2, 2]


def test_a_folder_keeps_the_architecture(tmp_path):
    made, frames = tokenizer(), frames_for()
    save_tokenizer(made, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == SMALL
    assert loaded.fingerprint == made.fingerprint
    assert torch.equal(loaded.encode(frames), made.encode(frames))


def test_the_fingerprint_covers_what_codes_depend_on_and_nothing_else():
    values = to_dict(SMALL)
    values["autoencoder"]["channels"] = [64]
    values["loss"]["l1"] = 0.5
    assert tokenizer(from_dict(TokenizerConfig, values, "t")).fingerprint == tokenizer().fingerprint
    values["quantizer"]["upsample"] = "trilinear"
    assert tokenizer(from_dict(TokenizerConfig, values, "t")).fingerprint != tokenizer().fingerprint


def test_a_training_step_reaches_every_parameter():
    critics = DiscriminatorConfig(weight=0.5, channels=8, layers=2, balance="adaptive")
    config = replace(tokenizer().config, loss=LossConfig(discriminator=critics))
    made = Learner(tokenizer(config)).train()
    frames = signed(frames_for())
    begin(made.tokenizer, [frames], torch.Generator().manual_seed(0))
    output = made(frames, 0.5, torch.Generator().manual_seed(0))
    output.loss.backward()
    assert bool(output.loss.isfinite())
    assert output.terms["deception_weight"] > 0
    assert all(each.grad is not None for each in made.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 9, 8), r"height \(9\) must be a multiple of 2; nearest are 8 and 10"),
        ((1, 2, 8, 1), r"width \(1\) must be a multiple of 2; nearest are 2 and 4"),
        ((1, 0, 8, 8), r"num_frames \(0\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(UserError, match=message):
        tokenizer().encode(torch.zeros(*shape, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"channels": 48}}, r"image.channels \(48\) must be a multiple of 32"),
        ({"image": {"channel_multipliers": []}}, r"image.channel_multipliers .* 1 to 8 numbers"),
        ({"image": {"decoder_multipliers": [1]}}, "image.decoder_multipliers must list 5 numbers"),
        ({"image": {"kernel_size": 2}}, r"image.kernel_size \(2\) must be odd"),
        ({"image": {"num_blocks": 0}}, r"image.num_blocks \(0\) must be 1 to 64"),
        ({"architecture": "2d"}, "architecture .* must be one of causal, image"),
        (
            {"architecture": "image", "quantizer": {"clip_latent_frames": 4}},
            "an image tokenizer codes every frame",
        ),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(TokenizerConfig, values, "settings")


def test_the_pipeline_encodes_with_it_in_padded_batches(tmp_path):
    from pipeline.config import TokenizeSettings
    from pipeline.encode import code_recipe
    from pipeline.shards.format import Bucket

    made, frames = tokenizer(), frames_for(batch=3)
    save_tokenizer(made, tmp_path)
    encoder = code_recipe(tmp_path, TokenizeSettings(batch_size=4)).load()
    schedule = encoder.schedule(Bucket(name="8x8", num_frames=3, height=8, width=8))
    assert schedule == made.schedule_for(3, 8, 8)
    codes = encoder.encode(frames.numpy())
    assert codes.dtype == "uint16"
    assert torch.equal(torch.from_numpy(codes.astype("int64")), made.encode(frames))
