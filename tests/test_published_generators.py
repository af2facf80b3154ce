"""Published generators load whole or not at all, and what is written samples as it was loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.cli import main
from tokenizer.autoencoder_config import AutoencoderConfig, ImageAutoencoderConfig
from tokenizer.checkpoint import read_checkpoint
from tokenizer.config import TokenizerConfig
from tokenizer.folder import save_tokenizer
from tokenizer.key_report import CheckpointMismatch, check_keys
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import image_and_clip, single_grid
from tokenizer.settings import UserError, read_settings
from training.cli import PRESETS
from training.compat.models import RECIPES, sizes_of
from training.compat.published import NAR_HEADS, convert, load_published, weights_in
from training.compat.reading import detect_layout, read_sizes
from training.compat.sizes import KEYS, Sizes, num_parameters
from training.config import DrawConfig, GeneratorRun, GuidanceConfig, SampleConfig
from training.generator import Generator
from training.method_config import MethodConfig
from training.models import MODELS
from training.run import open_run, read_run, sample_settings
from training.samples import generate
from training.vocabulary import Vocabulary

SMALL = Sizes(width=16, depth=2, hidden=44, codebook_size=32, num_classes=5)
SIZES = {
    "llamagen": SMALL,
    "par": replace(SMALL, transitions=3),
    "nar-image": replace(SMALL, further=1),
    "nar-video": replace(SMALL, further=2, num_cells=48),
    "arpg": SMALL,
    "var": replace(
        SMALL, hidden=64, heads=2, num_cells=21, num_scales=3, channels=4, shares_modulation=True
    ),
}
BUFFERS = {
    "llamagen": {"freqs_cis": torch.zeros(17, 4, 2)},
    "var": {
        "lvl_1L": torch.tensor([[0] + [1] * 4 + [2] * 16]),
        "attn_bias_for_masking": torch.zeros(1, 1, 21, 21),
        "blocks.0.attn.zero_k_bias": torch.zeros(16),
    },
}
HEADS = {"model.heads": 2}


def state_of(layout: str, sizes: Sizes | None = None) -> dict[str, Tensor]:
    """Random weights as the layout's authors name them, with buffers."""
    generator = torch.Generator().manual_seed(3)
    shapes = KEYS[layout](sizes or SIZES[layout])
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return state | BUFFERS.get(layout, {})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer for the small generators of each layout."""
    root = tmp_path_factory.mktemp("tokenizers")
    image = ImageAutoencoderConfig(
        channels=32, channel_multipliers=(1, 1), num_blocks=1, z_channels=4
    )
    codes = QuantizerConfig(codebook_size=32, codebook_dim=4, scales=(4,), num_phi=1)
    grid = TokenizerConfig(architecture="image", image=image, quantizer=codes)
    pyramid = replace(grid, quantizer=replace(codes, scales=(1, 2, 4)))
    video = TokenizerConfig(
        autoencoder=AutoencoderConfig(
            channels=(8,), patch=16, encoder_blocks=(1,), decoder_blocks=(1,)
        ),
        quantizer=replace(codes, scales=(4,)),
    )
    made = {}
    configs = {
        "grid": grid,
        "pyramid": pyramid,
        "video": video,
        "other": replace(grid, quantizer=replace(codes, codebook_size=16)),
        "thin": replace(pyramid, quantizer=replace(pyramid.quantizer, codebook_dim=3)),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        tokenizer = Tokenizer(config)
        quantizer = config.quantizer
        tokenizer.quantizer.codebook.set_codes(
            torch.randn(quantizer.codebook_size, quantizer.codebook_dim)
        )
        save_tokenizer(tokenizer.eval(), root / name)
        made[name] = root / name
    return {
        **dict.fromkeys(SIZES, made["grid"]),
        "var": made["pyramid"],
        "nar-video": made["video"],
    }


def options(layout: str) -> dict[str, object]:
    shape = {"shape": (9, 64, 64)} if layout == "nar-video" else {}
    return {"asked": {} if layout == "var" else dict(HEADS), **shape}


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("layout", "wrapped"),
    [
        *((layout, None) for layout in SIZES),
        *(("llamagen", part) for part in ("model", "module", "state_dict")),
    ],
)
def test_a_file_becomes_a_run_that_samples(
    layout: str, wrapped: str | None, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of(layout)
    content = {wrapped: state, "steps": 7} if wrapped else state
    path = saved(content, tmp_path / "c2i.pt")
    published = convert(path, tmp_path / "run", tokenizers[layout], **options(layout))
    assert set(published.left_out) == {*BUFFERS.get(layout, {}), *(["steps"] if wrapped else [])}
    run = open_run(tmp_path / "run")
    assert run.record.source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.record.source["layout"] == layout
    assert run.vocabulary.names == ("0", "1", "2", "3", "4")
    loaded = published.generator.state_dict()
    for name, value in run.generator.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    if not wrapped:
        assert generate(run, ["3"], SampleConfig()).codes.max() < 32


@pytest.mark.parametrize("layout", SIZES)
def test_a_converted_run_samples_as_its_paper_does(
    layout: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path = saved(state_of(layout), tmp_path / "c2i.pt")
    convert(path, tmp_path / "run", tokenizers[layout], **options(layout))
    drawn = sample_settings(SampleConfig, tmp_path / "run", {})
    method = read_run(tmp_path / "run")[1].method
    recipe = read_settings(GeneratorRun, PRESETS / f"{RECIPES[layout]}.yaml")
    assert recipe.method.name == method.name
    assert (method.num_steps, method.sizes) == (recipe.method.num_steps, recipe.method.sizes)
    for field in fields(DrawConfig):
        assert getattr(drawn, field.name) == getattr(recipe.sampling, field.name)
    if layout == "var":
        assert (drawn.top_k, drawn.top_p) == (900, 0.96)
        assert drawn.guidance == GuidanceConfig(kind="ramp", scale=2.5)
    if layout == "arpg":
        assert method.num_steps == 32
        assert drawn.guidance == GuidanceConfig(kind="linear", scale=5.4)
        asked = {**HEADS, "method.num_steps": 8}
        assert load_published(path, tokenizers[layout], asked).config.method.num_steps == 8


def same_weights(first: Generator, second: Generator) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wraps_a_model_is_no_part_of_its_keys(
    wrapper: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of("par")
    plain = saved(state, tmp_path / "plain.pt")
    content = {"model": {wrapper + key: value for key, value in state.items()}, "steps": 7}
    wrapped = saved(content, tmp_path / "a.pt")
    found = load_published(wrapped, tokenizers["par"], **options("par"))
    expected = load_published(plain, tokenizers["par"], **options("par"))
    assert same_weights(found.generator, expected.generator)
    content["model"][wrapper + "strange"] = content["model"].pop(wrapper + "norm.weight")
    with pytest.raises(CheckpointMismatch, match=r"1 missing: norm\.weight; 1 unexpected: strange"):
        load_published(
            saved(content, tmp_path / "a.pt"), tokenizers["par"], layout="par", **options("par")
        )


def test_the_checkpoint_of_vars_trainer_is_read_beside_its_tokenizer_and_optimizer(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of("var")
    trainer = {
        "config": {"patch_nums": (1, 2, 4), "label_smooth": 0.0},
        "var_wo_ddp": state,
        "vae_local": {"quantize.embedding.weight": torch.zeros(32, 4)},
        "var_opt": {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
    }
    content = {"epoch": 10, "iter": 0, "trainer": trainer, "args": {"depth": 2, "pn": "1_2_4"}}
    path = saved(content, tmp_path / "ar-ckpt-last.pth")
    found = load_published(path, tokenizers["var"])
    assert found.record.source["part"] == "trainer.var_wo_ddp"
    assert {"epoch", "args", "trainer.vae_local", "trainer.var_opt"} <= set(found.left_out)
    expected = load_published(saved(state, tmp_path / "var.pth"), tokenizers["var"])
    assert same_weights(found.generator, expected.generator)
    assert set(read_checkpoint(path, "trainer.vae_local").tensors) == {"quantize.embedding.weight"}


def test_the_checkpoint_of_nars_video_trainer_is_read(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    model = {"name": "llama-abs-L", "args": {"num_classes": 5}, "sd": state_of("nar-video")}
    content = {"model": model, "epoch": 1000, "cfg": {"ar": {"top_k": 0}}, "wandb_run_id": None}
    path = saved(content, tmp_path / "epoch-1000.pth")
    found = load_published(path, tokenizers["nar-video"], **options("nar-video"))
    plain = saved(state_of("nar-video"), tmp_path / "plain.pth")
    expected = load_published(plain, tokenizers["nar-video"], **options("nar-video"))
    assert same_weights(found.generator, expected.generator)


def test_an_mlp_of_any_width_is_read(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    for hidden in (1, 41, 55, 100):
        state = state_of("llamagen", replace(SMALL, hidden=hidden))
        path = saved(state, tmp_path / f"{hidden}.pt")
        found = load_published(path, tokenizers["llamagen"], **options("llamagen"))
        assert found.generator.transformer.blocks[0].mlp.down.in_features == hidden


def test_par_of_one_region_has_no_special_tokens(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of("par", replace(SMALL, transitions=0))
    path = saved(state, tmp_path / "a.pt")
    found = load_published(path, tokenizers["par"], **options("par"))
    assert found.config.method.regions == (1, 1, 1)
    del state["spe_tok_embeddings.special_embeddings.weight"]
    raster = load_published(
        saved(state, tmp_path / "b.pt"), tokenizers["llamagen"], **options("llamagen")
    )
    assert same_weights(found.generator, raster.generator)


def test_a_video_model_of_one_latent_frame_has_three_heads(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path = saved(
        state_of("nar-video", replace(SIZES["nar-video"], num_cells=16)), tmp_path / "a.pt"
    )
    found = load_published(path, tokenizers["nar-video"], shape=(1, 64, 64), asked=dict(HEADS))
    assert len(found.generator.heads) == 3


def test_every_layout_is_told_by_its_keys(tmp_path: Path) -> None:
    for layout in SIZES:
        path = saved(state_of(layout), tmp_path / f"{layout}.pt")
        assert detect_layout(read_checkpoint(path)) == layout


@pytest.mark.parametrize("layout", SIZES)
def test_every_key_that_is_wrong_is_named_at_once_and_nothing_is_written(
    layout: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of(layout)
    mlp = next(key for key in state if key.endswith(("w2.weight", "fc2.weight")))
    norm = next(key for key in state if key.endswith(("ffn_norm.weight", "v_bias")))
    state["strange"] = torch.zeros(1)
    state[mlp] = state[mlp][:, :-1].clone()
    del state[norm]
    path = saved(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointMismatch) as caught:
        convert(path, tmp_path / "run", tokenizers[layout], layout=layout, **options(layout))
    assert caught.value.missing == [norm]
    assert caught.value.unexpected == ["strange"]
    assert len(caught.value.misshaped) == 1
    assert mlp in caught.value.misshaped[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", SIZES)
def test_a_single_missing_tensor_is_the_one_that_is_named(layout: str, tmp_path: Path) -> None:
    state = state_of(layout)
    whole = read_checkpoint(saved(state, tmp_path / "a.pt"))
    for key in KEYS[layout](SIZES[layout]):
        checkpoint = replace(whole, tensors={name: state[name] for name in state if name != key})
        sizes = read_sizes(checkpoint, layout, sum(NAR_HEADS.get(layout, ())))
        kept, _ = weights_in(checkpoint, layout)
        with pytest.raises(CheckpointMismatch) as caught:
            check_keys(whole.path, KEYS[layout](sizes), kept)
        wrong = caught.value
        assert (wrong.missing, wrong.unexpected, wrong.misshaped) == ([key], [], [])


WRONG = [
    ("llamagen", "grid", {"asked": {}}, "give their number with --model.heads"),
    ("llamagen", "grid", {"asked": {**HEADS, "model.depth": 3}}, "model.depth is 2, not 3"),
    ("llamagen", "grid", {"asked": {**HEADS, "method.name": "par"}}, "method.name is raster"),
    ("llamagen", "pyramid", {}, "generates codes on one grid"),
    ("llamagen", "other", {}, "predicts 32 different codes, the tokenizer has 16"),
    ("llamagen", "grid", {"classes": ["a", "b"]}, "has 5 classes; 2 names are given"),
    ("llamagen", "grid", {"classes": list("aabcd")}, "given twice: a"),
    ("llamagen", "video", {"shape": (9, 64, 64)}, "generates images, not videos"),
    ("par", "grid", {"asked": {**HEADS, "method.regions": [1, 2, 3]}}, "are 6 regions"),
    ("par", "grid", {"shape": (1, 10, 10)}, "2 regions do not divide 5 cells"),
    ("nar-image", "grid", {"asked": {**HEADS, "model.head_blocks": [3]}}, "further heads are to"),
    ("nar-video", "video", {"shape": (5, 64, 64)}, "has positions for 48 codes"),
    ("var", "grid", {}, "was made for 3 scales of 21 codes"),
    ("var", "thin", {}, "takes reconstructions of 4 channels"),
]


@pytest.mark.parametrize(("layout", "tokenizer", "given", "expected"), WRONG)
def test_what_does_not_fit_is_refused(
    layout: str,
    tokenizer: str,
    given: dict[str, object],
    expected: str,
    tokenizers: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = saved(state_of(layout), tmp_path / "a.pt")
    with pytest.raises(UserError, match=expected):
        load_published(path, tokenizers["par"].parent / tokenizer, **options(layout) | given)


def test_numbers_that_are_none_are_refused(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    state = state_of("arpg")
    state["head.weight"][3] = torch.nan
    path = saved(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"not finite, in heads\.0\.weight"):
        load_published(path, tokenizers["arpg"], **options("arpg"))


def test_a_file_of_no_layout_or_of_two_is_refused(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    for state, expected in (
        ({"a": torch.zeros(1)}, "of no known layout: var has pos_1LC"),
        (state_of("var") | state_of("arpg"), r"several layouts \(var, arpg\)"),
    ):
        path = saved(state, tmp_path / "a.pt")
        with pytest.raises(UserError, match=expected):
            load_published(path, tokenizers["var"])


def test_the_command_names_classes_and_replaces_no_run(
    tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(state_of("par"), tmp_path / "a.pt")
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nwhite shark\nray\ncock\n\n")
    words = ["convert", str(path), "-o", str(tmp_path / "run"), "--tokenizer"]
    words += [
        str(tokenizers["par"]),
        "--classes",
        str(tmp_path / "names.txt"),
        "--model.heads",
        "2",
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in printed
    assert "layout   par" in printed
    names = json.loads((tmp_path / "run" / "vocabulary.json").read_text())["names"]
    assert names == ["tench", "goldfish", "white shark", "ray", "cock"]
    assert main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    words[3] = str(tmp_path / "other")
    assert main([*words, "--size", "par-l"]) == 2
    assert "model.width is 16, not 1024 as asked for" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


COUNTED = {  # codes, classes, cells of a table
    "var": (4096, 1000, 680),
    "nar-video": (8192, 101, 1024),
}


def published_sizes(name: str) -> Sizes:
    layout, model = MODELS[name].layout, MODELS[name].model
    num_codes, num_classes, cells = COUNTED.get(layout, (16384, 1000, 0))
    sizes = sizes_of(layout, model, MethodConfig(), num_codes, num_classes)
    if layout == "var":
        cells = 2240 if name == "var-d36-s" else cells
        sizes = replace(sizes, channels=32, num_scales=10)
    return replace(sizes, num_cells=cells)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_by_name_has_the_parameters_of_its_paper(name: str) -> None:
    """To the digits that the paper prints (NAR-M's and VAR-d36-s's are cut, not rounded)."""
    printed = MODELS[name].published
    unit = {"M": 1e6, "B": 1e9}[printed[-1]]
    last_digit = unit * 10.0 ** -len(printed[:-1].partition(".")[2])
    if name in ("nar-m", "var-d20"):
        last_digit *= 10
    counted = num_parameters(MODELS[name].layout, published_sizes(name))
    assert abs(counted - float(printed[:-1]) * unit) < last_digit


@pytest.mark.parametrize("name", MODELS)
def test_ours_has_the_published_parameters(name: str) -> None:
    """Exactly, but for what has no effect of its own: ARPG's unused row of the table, the position
    of NAR's class, and VAR's vectors of scales and of the start, which are part of its positions,
    against the biases of its keys, which are zero."""
    layout, model, sizes = MODELS[name].layout, MODELS[name].model, published_sizes(name)
    schedule = single_grid(1, 16, 16)
    if layout == "nar-video":
        schedule = single_grid(4, 16, 16)
    if layout == "var":
        sides = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) if sizes.num_cells == 2240 else None
        schedule = image_and_clip(1, sides or (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    classes = tuple(str(each) for each in range(sizes.num_classes))
    method = MethodConfig(name=MODELS[name].settings["method.name"])
    with torch.device("meta"):
        generator = Generator(
            model, method, schedule, Vocabulary("class", classes, length=1), sizes.codebook_size, 32
        )
    found = sum(each.numel() for each in generator.parameters())
    unused = sizes.width if layout in ("arpg", "nar-video") else 0
    if layout == "var":
        unused = (sizes.num_scales + sizes.first_cells - sizes.depth) * sizes.width
    assert found == num_parameters(layout, sizes) - unused
