"""Published checkpoints load whole or not at all, and nothing in them is executed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.cli import main
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer
from tokenizer.layouts import LAYOUTS, PUBLISHED, Names
from tokenizer.model import Tokenizer
from tokenizer.published import (
    CheckpointMismatch,
    check_keys,
    convert,
    load_published,
    to_published,
)
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError

VAR = TokenizerConfig(
    architecture="image",
    image=ImageAutoencoderConfig(
        channels=32, channel_multipliers=(1, 2), num_blocks=1, z_channels=4
    ),
    quantizer=QuantizerConfig(
        codebook_size=32,
        codebook_dim=4,
        scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        num_phi=4,
        learned_by="gradient",
    ),
)
LLAMAGEN = TokenizerConfig(
    architecture="image",
    image=replace(VAR.image, decoder_multipliers=(2, 1), z_channels=16, kernel_size=1),
    quantizer=QuantizerConfig(
        codebook_size=32,
        codebook_dim=4,
        scales=(128,),
        metric="sphere",
        learned_by="gradient",
        num_phi=1,
        phi_ratio=0.0,
    ),
)
CONFIGS = {"var": VAR, "llamagen": LLAMAGEN}


def names_of(layout, config, sharing="some"):
    num_levels = len(config.image.channel_multipliers)
    return Names(layout=LAYOUTS[layout], num_levels=num_levels, sharing=sharing)


def state_of(layout, sharing="some", seed=0):
    """A state dict as the family publishes it, with its usage buffer, and the tokenizer in it."""
    state, made = made_of(layout, sharing, seed)
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in state.items()}, made


@cache
def made_of(layout, sharing, seed):
    torch.manual_seed(seed)
    config = CONFIGS[layout]
    made = Tokenizer(config)
    made.quantizer.codebook.set_codes(torch.randn_like(made.quantizer.codebook.weight))
    state = to_published(names_of(layout, config, sharing), made.weights())
    state = {name: value.detach() for name, value in state.items()}
    shape = (10, 32) if layout == "var" else (65536,)
    state[LAYOUTS[layout].usage] = torch.zeros(shape)
    return state, made.eval()


@pytest.fixture
def var(tmp_path):
    """A function that saves a changed copy of a VAR state dict."""

    def save(change=lambda state: state, name="vae.pth"):
        state = state_of("var")[0]
        changed = change(state)
        torch.save(state if changed is None else changed, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("kind", ["flat", "model", "safetensors", "before torch 1.6"])
def test_a_checkpoint_becomes_a_folder_with_the_same_codes(layout, kind, tmp_path):
    state, made = state_of(layout)
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {"model": state, "steps": 3} if kind == "model" else state
        torch.save(content, path, _use_new_zipfile_serialization=kind != "before torch 1.6")
    published = convert(path, tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    assert loaded.config == CONFIGS[layout] == published.tokenizer.config
    assert loaded.fingerprint == made.fingerprint
    frames = torch.randint(256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    codes = made.encode(frames)
    assert torch.equal(loaded.encode(frames), codes)
    made_by = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["made_by"]
    assert made_by["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made_by["checkpoint"] == path.name
    assert made_by["layout"] == layout
    assert LAYOUTS[layout].usage in published.left_out
    assert ("steps" in published.left_out) == (kind == "model")


def test_converting_again_is_the_same_folder_and_another_tokenizer_is_not_replaced(var, tmp_path):
    out = tmp_path / "out"
    convert(var(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    convert(var(), out)
    with pytest.raises(UserError, match=r"out: holds another tokenizer .* name another folder"):
        convert(var(), out, {"quantizer.scales": (1, 16)})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("sharing", ["one", "some", "each"])
def test_every_way_of_sharing_convolutions_is_read(sharing, tmp_path):
    count = {"one": 1, "some": 4, "each": 10}[sharing]
    config = replace(VAR, quantizer=replace(VAR.quantizer, num_phi=count))
    made = Tokenizer(config)
    made.quantizer.codebook.set_codes(torch.randn(32, 4))
    state = to_published(names_of("var", config, sharing), made.weights())
    torch.save(state, tmp_path / "a.pth")
    published = load_published(tmp_path / "a.pth")
    assert published.tokenizer.config == config
    assert published.tokenizer.fingerprint == made.fingerprint


def test_every_wrong_key_is_named_in_one_error_and_nothing_is_written(var, tmp_path):
    def change(state):
        del state["encoder.mid.block_2.conv2.bias"], state["decoder.norm_out.weight"]
        state["decoder.up.1.upsample.conv.weight"] = torch.zeros(3, 3)
        state["quant_conv.bias"] = torch.zeros(4, dtype=torch.int64)
        state["encoder.extra"] = torch.zeros(1)

    with pytest.raises(CheckpointMismatch) as caught:
        convert(var(change), tmp_path / "out")
    error = caught.value
    assert error.missing == ["encoder.mid.block_2.conv2.bias", "decoder.norm_out.weight"]
    assert error.unexpected == ["encoder.extra"]
    assert sorted(error.misshaped) == [
        "decoder.up.1.upsample.conv.weight is float32 [3, 3] instead of [64, 64, 3, 3]",
        "quant_conv.bias is int64 [4] instead of [4]",
    ]
    for part in (*error.missing, *error.unexpected, *error.misshaped):
        assert part in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", CONFIGS)
def test_no_single_tensor_may_be_missing(layout, tmp_path):
    state, _ = state_of(layout)
    path = tmp_path / "a.safetensors"
    for name in state:
        if name == LAYOUTS[layout].usage:
            continue
        save_file({key: value for key, value in state.items() if key != name}, path)
        with pytest.raises(UserError, match=r"missing|--quantizer.num_phi 3"):
            load_published(path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantizer.codebook_size": 64}, "quantizer.codebook_size is 32, not 64 as asked for"),
        ({"image.channel_multipliers": (1, 1)}, r"channel_multipliers is \[1, 2\], not \[1, 1\]"),
        ({"quantizer.num_phi": 1}, "num_phi is 4, not 1"),
        ({"quantizer.metric": "angle"}, "metric .* must be one of"),
        ({"image.depth": 3}, "unknown key 'image.depth'"),
    ],
)
def test_a_file_of_other_sizes_than_asked_for_is_refused(var, asked, message):
    with pytest.raises(UserError, match=message):
        load_published(var(), asked)


def test_what_shapes_do_not_tell_is_asked_for(var):
    asked = {"quantizer.scales": (1, 4, 8, 16), "quantizer.phi_ratio": 0.25}
    config = load_published(var(), asked).tokenizer.config
    assert config.quantizer.scales == (1, 4, 8, 16)
    assert config.quantizer.phi_ratio == 0.25


def test_another_number_of_scales_or_convolutions_must_be_asked_for(var):
    def four_scales(state):
        state["quantize.ema_vocab_hit_SV"] = torch.zeros(4, 32)

    with pytest.raises(UserError, match="has 4 scales, not the published 10"):
        load_published(var(four_scales))
    asked = {"quantizer.scales": [1, 2, 3, 4]}
    assert load_published(var(four_scales), asked).tokenizer.config.quantizer.scales == (1, 2, 3, 4)

    def other_codes(state):
        state["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 99)

    with pytest.raises(UserError, match="32 codes"):
        load_published(var(other_codes))


def test_more_convolutions_than_scales_load_where_they_are_asked_for(tmp_path):
    made = Tokenizer(replace(VAR, quantizer=replace(VAR.quantizer, num_phi=6)))
    made.quantizer.codebook.set_codes(torch.randn(32, 4))
    torch.save(
        to_published(names_of("var", made.config, "each"), made.weights()), tmp_path / "a.pt"
    )
    asked = {"quantizer.scales": [1, 2, 4]}
    with pytest.raises(UserError, match="has 6 convolutions, one per scale, for 3 scales"):
        load_published(tmp_path / "a.pt", asked)
    published = load_published(tmp_path / "a.pt", {**asked, "quantizer.num_phi": 6})
    assert len(published.tokenizer.quantizer.phi) == 6


def test_a_training_checkpoint_has_parts_and_says_which_was_taken(tmp_path):
    first, second = state_of("llamagen", seed=1)[0], state_of("llamagen", seed=2)[0]
    content = {
        "model": first,
        "ema": second,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "discriminator": {"main.weight": torch.zeros(1)},
        "args": argparse.Namespace(codebook_size=32),
    }
    path = tmp_path / "last.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="holds model, ema; say which with --part"):
        load_published(path)
    with pytest.raises(UserError, match="no part 'vae'"):
        load_published(path, part="vae")
    published = load_published(path, part="ema")
    assert published.source["part"] == "ema"
    assert published.left_out == (
        "quantize.codebook_used", "model", "optimizer", "discriminator", "args"
    )  # fmt: skip
    found = published.tokenizer.quantizer.codebook.weight
    assert torch.equal(found, second["quantize.embedding.weight"])


def test_the_tokenizer_in_a_checkpoint_of_vars_trainer_is_read(tmp_path):
    state, made = state_of("var")
    trainer = {"config": {}, "var_wo_ddp": {"head.weight": torch.zeros(1)}, "vae_local": state}
    torch.save({"epoch": 3, "trainer": trainer}, tmp_path / "ar-ckpt-last.pth")
    published = load_published(tmp_path / "ar-ckpt-last.pth")
    assert published.source["part"] == "trainer.vae_local"
    assert published.tokenizer.fingerprint == made.fingerprint


def test_losses_and_discriminators_in_a_state_dict_are_left_out_and_named(var):
    def change(state):
        state["loss.discriminator.main.0.weight"] = torch.zeros(1)

    published = load_published(var(change))
    assert published.left_out == ("quantize.ema_vocab_hit_SV", "loss.discriminator.main.0.weight")


def test_half_precision_becomes_float32(var):
    def change(state):
        return {name: value.half() for name, value in state.items()}

    weights = load_published(var(change)).tokenizer.weights()
    assert {value.dtype for value in weights.values()} == {torch.float32}


class Bomb:
    """Creates a file when it is unpickled by anyone who executes code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["archive", "inside", "pickle", "legacy"])
def test_pickled_code_is_one_error_and_is_not_executed(how, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    state = state_of("var")[0]
    if how == "archive":
        torch.save(Bomb(marker), path)
    elif how == "inside":
        torch.save({"model": state, "args": Bomb(marker)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"model": Bomb(marker)}))
    else:
        torch.save({"args": Bomb(marker)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError) as caught:
        load_published(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    if how != "pickle":
        assert "it asks for posix.system" in str(caught.value)
        assert "nothing was executed" in str(caught.value)
    assert not marker.exists()
    with path.open("rb") as file:  # the file is as hostile as it should be
        if how == "pickle":
            pickle.load(file)
            assert marker.exists()


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_truncated_checkpoint_is_one_error(name, share, tmp_path):
    path = tmp_path / name
    state, _ = state_of("var")
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"not a whole checkpoint|damaged") as caught:
        load_published(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", range(16))
def test_a_damaged_pickle_is_one_error_or_the_same_weights(place, var):
    path = var()
    with zipfile.ZipFile(path) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
    content = bytearray(path.read_bytes())
    start = content.find(b"\x80\x02")
    content[start + 2 + place * (entry.file_size - 4) // 16] ^= 0x15
    path.write_bytes(content)
    with suppress(UserError):
        load_published(path)


def test_what_a_file_claims_is_held_against_its_size(tmp_path, var):
    def expanded(state):
        state["quantize.embedding.weight"] = torch.zeros(1, 1).expand(1 << 40, 4)

    with pytest.raises(UserError, match=r"claim .* bytes of a file of"):
        load_published(var(expanded))

    def squeezed(path):
        with zipfile.ZipFile(path) as archive:
            content = {each: archive.read(each) for each in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, value in content.items():
                archive.writestr(each, value)
        return path

    with pytest.raises(UserError, match=r"not an archive that torch\.save writes"):
        load_published(squeezed(var()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not tensors by name"),
        ({}, "not a state dict"),
        ({"model": {"a": 3}}, "not a state dict of tensors by name: it has 'a'"),
        ({"a.weight": torch.zeros(2)}, "are of neither layout"),
        ({"encoder.down.9.x": torch.zeros(1)}, "goes to 9; 7 at most"),
        ({"encoder.down.0.x": torch.zeros(1)}, "cannot tell image.channels"),
        ({"encoder.down.0.x": torch.eye(2).to_sparse()}, "it has 'encoder.down.0.x'"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_published(tmp_path / "a.pth")


def test_numbers_that_are_not_finite_are_refused_by_name(var):
    def change(state):
        state["decoder.conv_out.bias"][1] = torch.nan

    with pytest.raises(UserError, match=r"not finite, in decoder\.conv_out\.bias"):
        load_published(var(change))


def test_a_missing_file_or_one_of_another_kind_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_published(tmp_path / "none.pth")
    with pytest.raises(UserError, match="not a checkpoint by its name"):
        load_published(tmp_path / "vae.zip")


def test_the_command_converts_and_info_shows_an_image_tokenizer(var, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(var()), "-o", str(out), "--schedule", "var-512"]) == 0
    printed = capsys.readouterr().out
    assert "left out: quantize.ema_vocab_hit_SV" in printed
    assert main(["info", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "architecture: image" in printed
    assert "1 frames of 64 x 64: 2240 codes" in printed
    assert "autoencoder.to_latents" in printed


def test_the_command_refuses_what_is_not_the_published_size_in_one_line(var, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(var()), "-o", str(out), "--published", "var-vqvae"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "image.channels is 32, not 160 as asked for" in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("preset", "layout", "num_tensors", "millions", "parts"),
    [
        ("var-vqvae", "var", 324, 108.95, {"encoder": 44.1, "decoder": 64.7}),
        ("llamagen-vq16", "llamagen", 344, 71.88, {}),
        ("llamagen-vq8", "llamagen", 300, 70.11, {}),
    ],
)
def test_published_configurations_have_the_published_keys_and_sizes(
    preset, layout, num_tensors, millions, parts
):
    config = PUBLISHED[preset]
    with torch.device("meta"):
        ours = Tokenizer(config).weights()
    names = names_of(layout, config)
    theirs = to_published(names, ours)
    check_keys(None, names, ours, theirs)
    assert len(theirs) + 1 == num_tensors  # the usage buffer
    assert round(sum(value.numel() for value in theirs.values()) / 1e6, 2) == millions
    for part, count in parts.items():
        found = sum(value.numel() for name, value in theirs.items() if name.startswith(part))
        assert round(found / 1e6, 1) == count
    if layout == "var":
        assert theirs["encoder.down.4.attn.0.qkv.weight"].shape == (1920, 640, 1, 1)
        assert theirs["quantize.quant_resi.qresi_ls.3.weight"].shape == (32, 32, 3, 3)
        assert theirs["decoder.up.4.attn.2.proj_out.weight"].shape == (640, 640, 1, 1)
    else:
        assert theirs["quant_conv.weight"].shape == (8, 256, 1, 1)
        assert theirs["post_quant_conv.weight"].shape == (256, 8, 1, 1)
        assert theirs["quantize.embedding.weight"].shape == (16384, 8)


@pytest.mark.slow
def test_a_whole_var_tokenizer_is_converted_loaded_and_used(tmp_path):
    torch.manual_seed(0)
    made = Tokenizer(PUBLISHED["var-vqvae"])
    made.quantizer.codebook.set_codes(torch.randn(4096, 32))
    state = to_published(names_of("var", made.config), made.weights())
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 4096)
    path = tmp_path / "vae_ch160v4096z32.pth"
    torch.save(state, path)
    assert path.stat().st_size > 435_000_000
    del state
    convert(path, tmp_path / "out")
    path.unlink()
    loaded = load_tokenizer(tmp_path / "out")
    frames = torch.randint(256, (1, 1, 256, 256, 3), dtype=torch.uint8)
    codes = loaded.encode(frames)
    assert codes.shape == (1, 680)
    assert torch.equal(codes, made.eval().encode(frames))
    assert loaded.decode(codes, loaded.schedule_for(1, 256, 256)).shape == frames.shape
