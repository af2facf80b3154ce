"""VAR's and LlamaGen's tokenizers against numbers of their reference implementations.

Names and settings are read from each folder, so other folders of the same layout are tested too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.golden import LOSSES, Golden, phi_settings
from tokenizer.published import Published, load_published, to_published
from tokenizer.scales import Schedule, image_and_clip

var = pytest.mark.golden("var_vqvae_*")
llamagen = pytest.mark.golden("llamagen_vq*")


@pytest.fixture
def golden(golden_folder: Path) -> Golden:
    return Golden(golden_folder)


@pytest.fixture
def published(golden: Golden) -> Published:
    """The folder's tokenizer; every size in its settings must be what the file has."""
    settings = golden.config
    if "codebook_embed_dim" in settings:
        asked = {
            "image.channels": settings["ch"],
            "image.channel_multipliers": settings["encoder_ch_mult"],
            "image.num_blocks": settings["num_res_blocks"],
            "image.z_channels": settings["z_channels"],
            "image.kernel_size": 1,
            "quantizer.codebook_size": settings["codebook_size"],
            "quantizer.codebook_dim": settings["codebook_embed_dim"],
            "quantizer.metric": "sphere" if settings["codebook_l2_norm"] else "l2",
            "quantizer.entropy_weight": settings["entropy_loss_ratio"],
            "loss.commitment": settings["commit_loss_beta"],
        }
        if settings["decoder_ch_mult"] != settings["encoder_ch_mult"]:
            asked["image.decoder_multipliers"] = settings["decoder_ch_mult"]
    else:
        asked = {
            "image.channels": settings["ch"],
            "image.channel_multipliers": settings["ch_mult"],
            "image.num_blocks": settings["num_res_blocks"],
            "image.z_channels": settings["z_channels"],
            "image.kernel_size": settings["quant_conv_ks"],
            "quantizer.codebook_size": settings["vocab_size"],
            "quantizer.codebook_dim": settings["z_channels"],
            "quantizer.metric": "cosine" if settings["using_znorm"] else "l2",
            **{f"quantizer.{key}": value for key, value in phi_settings(settings).items()},
            "quantizer.scales": [_longer(side) for side in settings["v_patch_nums"]],
            "loss.commitment": settings["beta"],
        }
    return load_published(golden.folder / "weights.safetensors", asked)


@pytest.fixture
def schedule(golden: Golden, published: Published) -> Schedule:
    """The scales of the recorded images."""
    found = published.tokenizer.schedule_for(1, *golden.recorded["image"].shape[2:])
    sides = golden.config.get("v_patch_nums")
    if sides is None:
        return found
    expected = image_and_clip(1, [each if isinstance(each, int) else tuple(each) for each in sides])
    assert found == expected or any(not isinstance(side, int) for side in sides)
    return expected


@var
def test_var_images_have_the_recorded_latents_and_ids(golden, published, schedule) -> None:
    tokenizer, image = published.tokenizer, golden.recorded["image"]
    golden.check("encoder_out", tokenizer.autoencoder.encoder(image))
    latents = tokenizer.encode_latents(image[:, :, None])
    golden.check("f", latents[:, :, 0])
    codes = tokenizer.quantizer.encode(latents, schedule)
    for index, part in enumerate(schedule.split(codes)):
        golden.check(f"idx_{index}", part.flatten(1))


@var
def test_var_codes_have_the_recorded_reconstructions(golden, published, schedule) -> None:
    quantizer, autoencoder = published.tokenizer.quantizer, published.tokenizer.autoencoder
    codes = _recorded_codes(golden, schedule)
    images = []
    for index in range(len(schedule.scales)):
        latents = quantizer.decode(codes, schedule, index + 1)
        golden.check(f"f_hat_{index}", latents[:, :, 0])
        images.append(autoencoder.decode_canonically(latents)[:, :, 0])
    golden.check("embed_to_fhat_last", quantizer.decode(codes, schedule)[:, :, 0])
    golden.check("decoder_raw", images[-1])
    golden.check("reconstruction", images[-1].clamp(-1, 1))
    golden.check("image_per_scale", torch.stack(images).clamp(-1, 1))


@var
def test_var_transformers_are_fed_the_recorded_maps(golden, published, schedule) -> None:
    quantizer, codes = published.tokenizer.quantizer, _recorded_codes(golden, schedule)
    features = quantizer.input_features(codes, schedule)
    golden.check("var_input", features[:, schedule.scales[0].num_tokens :])
    maps = [each[:, :, 0] for each in quantizer.input_maps(codes, schedule)[1:]]
    for index, found in enumerate([*maps, quantizer.decode(codes, schedule)[:, :, 0]]):
        golden.check(f"ar_next_input_{index}", found)


@var
def test_var_training_has_the_recorded_loss_and_gradients(golden, published, schedule) -> None:
    tokenizer = published.tokenizer.requires_grad_(True)
    beta = tokenizer.config.loss.commitment
    latents = golden.recorded["f"][:, :, None].requires_grad_()
    quantized = tokenizer.quantizer(latents, schedule)
    golden.check("train_f_hat", quantized.latents.detach()[:, :, 0])
    loss = quantized.reconstruction_loss + beta * quantized.commitment_loss
    golden.check("train_vq_loss", loss.detach().view(1), LOSSES)
    ramp = torch.linspace(-1, 1, latents.numel()).view_as(latents)
    (loss + (quantized.latents * ramp).sum()).backward()
    golden.check("train_grad_f", latents.grad[:, :, 0])

    tokenizer.zero_grad()
    image = golden.recorded["image"][:, :, None]
    quantized = tokenizer.quantizer(tokenizer.autoencoder.encode(image), schedule)
    loss = quantized.reconstruction_loss + beta * quantized.commitment_loss
    loss = loss + functional.mse_loss(tokenizer.autoencoder.decode(quantized.latents), image)
    loss.backward()
    _check(loss, golden.scalars["train_loss_mse_plus_vq"])
    golden.check_gradient_norms(_gradients(published))


@llamagen
def test_llamagen_images_have_the_recorded_latents_and_ids(golden, published, schedule) -> None:
    tokenizer, image = published.tokenizer, golden.recorded["image"]
    golden.check("encoder_out", tokenizer.autoencoder.encoder(image))
    latents = tokenizer.encode_latents(image[:, :, None])
    golden.check("h", latents[:, :, 0])
    codes = tokenizer.quantizer.encode(latents, schedule)
    golden.check("indices", codes)
    golden.check("quant", tokenizer.quantizer.decode(codes, schedule)[:, :, 0])


@llamagen
def test_llamagen_codes_have_the_recorded_reconstructions(golden, published, schedule) -> None:
    quantizer, autoencoder = published.tokenizer.quantizer, published.tokenizer.autoencoder
    entries = quantizer.codebook.lookup(golden.recorded["indices"])
    shape = golden.recorded["codebook_entry"].shape
    golden.check("codebook_entry", entries.movedim(1, -1).reshape(shape))
    for ids, images in (
        ("indices", ("decode_code", "reconstruction")),
        ("random_indices", ("random_decode",)),
    ):
        latents = quantizer.decode(golden.recorded[ids], schedule)
        for name in images:
            golden.check(name, autoencoder.decode_canonically(latents)[:, :, 0])


@llamagen
def test_llamagen_training_has_the_recorded_losses_and_gradients(
    golden, published, schedule
) -> None:
    tokenizer = published.tokenizer.requires_grad_(True)
    image, scalars = golden.recorded["image"][:, :, None], golden.scalars
    quantized = tokenizer.quantizer(tokenizer.autoencoder.encode(image), schedule)
    commitment = tokenizer.config.loss.commitment * quantized.commitment_loss
    entropy = quantized.extra.get("entropy", torch.zeros(()))
    _check(quantized.reconstruction_loss, scalars["train_vq_loss"])
    _check(commitment, scalars["train_commit_loss"])
    _check(entropy, scalars["train_entropy_loss"])
    loss = functional.mse_loss(tokenizer.autoencoder.decode(quantized.latents), image)
    loss = loss + quantized.reconstruction_loss + commitment + entropy
    loss.backward()
    _check(loss, scalars["train_loss_mse_plus_all"])
    golden.check_gradient_norms(_gradients(published))


def _recorded_codes(golden: Golden, schedule: Schedule) -> Tensor:
    parts = [golden.recorded[f"idx_{index}"] for index in range(len(schedule.scales))]
    return torch.cat(parts, dim=1)


def _gradients(published: Published) -> dict[str, Tensor | None]:
    """Gradients by the reference's names."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in published.tokenizer.named_parameters()
    }
    return to_published(published.names, gradients)


def _check(found: Tensor, expected: float) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected), **LOSSES)


def _longer(side: int | list[int]) -> int:
    return side if isinstance(side, int) else max(side)
