"""The tokenizer's folder, its contract with the pipeline, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.cli import main
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.model import Tokenizer, signed, unsigned
from tokenizer.presets import PRESETS
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError, from_dict, to_dict

SMALL = TokenizerConfig(
    autoencoder=AutoencoderConfig(channels=(12,)),
    quantizer=QuantizerConfig(codebook_size=32, codebook_dim=4),
)


def tokenizer(seed=0, config=SMALL):
    torch.manual_seed(seed)
    made = Tokenizer(config)
    made.quantizer.codebook.set_codes(torch.randn_like(made.quantizer.codebook.weight))
    return made.eval()


def frames_for(batch=2, num_frames=9, height=64, width=64):
    return torch.randint(256, (batch, num_frames, height, width, 3), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tokenizer(), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("num_frames", "num_tokens"), [(1, 21), (5, 42), (9, 63), (17, 105)])
def test_clips_of_any_length_become_codes_and_frames_again(num_frames, num_tokens):
    made, frames = tokenizer(), frames_for(num_frames=num_frames)
    schedule = made.schedule_for(num_frames, 64, 64)
    codes = made.encode(frames)
    assert codes.shape == (2, num_tokens) == (2, schedule.num_tokens)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < made.codebook_size == 32
    decoded = made.decode(codes, schedule)
    assert decoded.shape == frames.shape
    assert decoded.dtype == torch.uint8


def test_a_long_clip_may_have_several_pyramids():
    config = TokenizerConfig(
        autoencoder=SMALL.autoencoder,
        quantizer=QuantizerConfig(codebook_size=32, codebook_dim=4, clip_latent_frames=2),
    )
    made = tokenizer(config=config)
    schedule = made.schedule_for(17, 64, 64)
    assert [len(pyramid) for pyramid in schedule.pyramids] == [3, 3, 3]
    frames = frames_for(num_frames=17)
    assert made.decode(made.encode(frames), schedule).shape == frames.shape


def test_a_change_in_a_frame_changes_no_code_of_an_earlier_pyramid():
    made, frames = tokenizer(), frames_for()
    changed = frames.clone()
    changed[:, 1] = 255 - changed[:, 1]
    before, after = made.encode(frames), made.encode(changed)
    assert torch.equal(before[:, :21], after[:, :21])
    assert not torch.equal(before[:, 21:], after[:, 21:])


def test_a_clip_has_the_same_codes_at_every_place_of_a_batch():
    made, frames = tokenizer(), frames_for(batch=4)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(made.encode(frames[order]), made.encode(frames)[order])


def test_other_aspects_get_scales_in_proportion():
    schedule = SMALL.schedule_for(5, 64, 96)
    assert [scale.shape for scale in schedule.scales[:3]] == [(1, 1, 2), (1, 2, 3), (1, 4, 6)]
    made = tokenizer()
    assert made.encode(frames_for(num_frames=5, width=96)).shape == (2, 2 * (2 + 6 + 24))


def test_pixels_survive_the_change_of_range():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    assert torch.equal(unsigned(signed(frames)), frames)
    assert signed(frames).min() == -1
    assert signed(frames).max() == 1


def test_a_loaded_tokenizer_gives_the_same_codes_and_fingerprint_and_is_frozen(folder):
    saved, loaded = tokenizer(), load_tokenizer(folder)
    frames = frames_for()
    assert torch.equal(loaded.encode(frames), saved.encode(frames))
    assert loaded.fingerprint == saved.fingerprint
    assert len(loaded.fingerprint) == 64
    assert json.loads((folder / "tokenizer.json").read_text())["fingerprint"] == saved.fingerprint
    assert loaded.config == saved.config
    assert not loaded.training
    assert not any(each.requires_grad for each in loaded.parameters())
    assert bool(loaded.quantizer.codebook.is_initialised)


def test_equal_tokenizers_are_equal_files(folder, tmp_path):
    save_tokenizer(tokenizer(), tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "tokenizer.json"]


def test_the_fingerprint_depends_on_weights_and_settings_but_not_on_training_statistics():
    made = tokenizer()
    before = made.fingerprint
    made.quantizer.codebook.ema_count += 1
    assert made.fingerprint == before
    made.quantizer.codebook.weight[0, 0] += 1
    assert made.fingerprint != before
    other = TokenizerConfig(
        autoencoder=SMALL.autoencoder,
        quantizer=QuantizerConfig(codebook_size=32, codebook_dim=4, upsample="trilinear"),
    )
    assert tokenizer(config=other).fingerprint != before


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 64, 64), r"num_frames \(8\) must be 1 \+ a multiple of 4; nearest are 5 and 9"),
        ((1, 9, 65, 64), r"height \(65\) must be a multiple of 16; nearest are 64 and 80"),
        ((1, 9, 64, 8), r"width \(8\) must be a multiple of 16; nearest are 16 and 32"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_the_nearest_ones(shape, message):
    with pytest.raises(UserError, match=message):
        tokenizer().encode(torch.zeros(*shape, 3, dtype=torch.uint8))


def test_frames_of_another_kind_are_refused():
    for frames in (torch.zeros(1, 9, 64, 64, 3), torch.zeros(1, 9, 64, 64, 1, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"must be uint8 \[b, t, h, w, 3\]"):
            tokenizer().encode(frames)


def test_codes_of_another_tokenizer_or_schedule_are_refused():
    made = tokenizer()
    schedule = made.schedule_for(9, 64, 64)
    with pytest.raises(UserError, match=r"codes \(0 to 32\) must lie in \[0, 32\)"):
        made.decode(torch.arange(63).clamp(max=32)[None], schedule)
    with pytest.raises(UserError, match=r"\[b, 63\] is needed"):
        made.decode(torch.zeros(1, 21, dtype=torch.int64), schedule)


def test_an_empty_folder_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)


def damage_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def damage_description(folder):
    (folder / "tokenizer.json").write_text('{"format": 1')


def rename_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["other"] = weights.pop("quantizer.phi.0.bias")
    save_file(weights, folder / "model.safetensors")


def reshape_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["quantizer.codebook.weight"] = torch.zeros(31, 4)
    save_file(weights, folder / "model.safetensors")


def change_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["quantizer.codebook.weight"] += 1
    save_file(weights, folder / "model.safetensors")


def change_description(key, value):
    def change(folder):
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def change_config(section, key, value):
    """Settings that ask for another model than the weights are, up to one beyond any memory."""

    def change(folder):
        path = folder / "tokenizer.json"
        description = json.loads(path.read_text())
        description["config"][section][key] = value
        path.write_text(json.dumps(description))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, r"model.safetensors: damaged"),
        (remove_weights, r"model.safetensors: missing"),
        (damage_description, r"tokenizer.json: damaged"),
        (rename_tensor, r"quantizer.phi.0.bias is missing; other is unknown"),
        (reshape_tensor, r"codebook.weight is torch.float32 \[31, 4\] instead of .*\[32, 4\]"),
        (change_weight, r"do not belong together"),
        (change_description("format", 2), r"format 2 is unknown; this version reads format 1"),
        (change_description("config", {"quantiser": {}}), r"unknown key 'quantiser'"),
        (change_description("config", 3), r"tokenizer.json: damaged"),
        (change_description("made_by", 3), r"tokenizer.json: damaged"),
        (change_config("quantizer", "codebook_size", 2**32), r"codebook.weight is .*4294967296, 4"),
        (change_config("quantizer", "codebook_dim", 10**9), r"codebook_dim \(1000000000\) must be"),
        (change_config("quantizer", "num_phi", 10**9), r"num_phi \(1000000000\) must be 1 to"),
        (change_config("autoencoder", "channels", [2**14]), r"does not fit tokenizer.json"),
        (change_config("autoencoder", "channels", [10**12]), r"channels .* must be 1 to 16384"),
        (change_config("autoencoder", "decoder_blocks", [10**7]), r"decoder_blocks .* 0 to 64"),
        (change_config("autoencoder", "spatial_stride", 2**20), r"a power of two up to 64"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_info_prints_settings_sizes_and_the_schedule(folder, capsys):
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert tokenizer().fingerprint in printed
    assert "63 codes" in printed
    assert "codebook_size: 32" in printed
    assert "32 different codes: 315 bits a clip, 0.0085 a pixel, 585 pixels a code" in printed
    assert "scale 6   latent frames [1, 3)  2 x 4 x 4 = 32 codes" in printed
    assert "z_channels" not in printed
    assert main(["info", str(folder), "--shape", "17", "64", "96"]) == 0
    assert "17 frames of 64 x 96" in capsys.readouterr().out


def test_info_finds_the_tokenizer_of_a_run_and_lets_no_file_steer_the_terminal(folder, capsys):
    change_description("made_by", {"\x1b[31mred": "\x1b]0;title\x07"})(folder)
    assert main(["info", str(folder.parent)]) == 0
    printed = capsys.readouterr().out
    assert tokenizer().fingerprint in printed
    assert "\x1b" not in printed


def test_info_on_a_folder_without_tokenizer_is_one_line_and_exit_2(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no tokenizer here" in captured.err


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built_and_survive_plain_form(name):
    config = PRESETS[name]
    with torch.device("meta"):
        Tokenizer(config)
    assert from_dict(TokenizerConfig, to_dict(config), name) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoencoderConfig(patch=3), r"patch \(3\) must be a power of two"),
        (lambda: AutoencoderConfig(patch=32), "larger than spatial_stride"),
        (lambda: AutoencoderConfig(channels=(8, 8)), "channels must list 1 numbers"),
        (lambda: QuantizerConfig(scales=(4, 2)), "must grow from coarse to fine"),
        (lambda: QuantizerConfig(ema_decay=1.0), r"ema_decay \(1.0\) must lie in \[0, 1\)"),
        (lambda: QuantizerConfig(codebook_size=1), "at least 2 codes"),
        (
            lambda: TokenizerConfig(
                autoencoder=AutoencoderConfig(
                    patch=1, temporal_patch=1, spatial_stride=1, temporal_stride=1
                )
            ),
            r"codebook_dim \(12\) is more than the 3 values",
        ),
        (
            lambda: TokenizerConfig(
                autoencoder=AutoencoderConfig(patch=64, spatial_stride=64),
                quantizer=QuantizerConfig(codebook_dim=400),
            ),
            "must be at most 16777216",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
