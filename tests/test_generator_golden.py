"""PAR's, NAR's, VAR's and ARPG's transformers against numbers of their reference implementations.

Names and settings are read from each folder, so other folders of the same layout are tested too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import LOSSES, Golden, phi_settings
from tokenizer.model import Tokenizer
from tokenizer.published import load_published
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule, image_and_clip, single_grid
from training.attention import Sight, dense_mask
from training.block_config import BlockConfig
from training.compat import llamagen
from training.compat.var import var
from training.config import GuidanceConfig, ModelConfig, SampleConfig
from training.generator import Generator, Known
from training.guidance import Moment, guidance_scale
from training.layout import Role
from training.method_config import MethodConfig
from training.partial import input_features
from training.sampler import Step, sample_codes
from training.vocabulary import ABSENT, Vocabulary

GUIDED = {"rtol": 1e-4, "atol": 3e-4}
DROPPED = 0.1
NEVER_FED = ("codes.weight", "transitions.weight")
"""What generators that make all cells in their first steps have no use for."""


@dataclass(frozen=True)
class Case:
    """A folder's transformer as ours; `ours_of` gives our weights of theirs, with gradients."""

    golden: Golden
    generator: Generator
    ours_of: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    schedule: Schedule

    def prompts(self, labels: Tensor) -> Tensor:
        classes = self.golden.config["num_classes"]
        return torch.where((labels < 0) | (labels >= classes), ABSENT, labels)[:, None]


def make_case(
    golden: Golden,
    method: MethodConfig,
    block: BlockConfig,
    schedule: Schedule,
    ours_of: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    **model: object,
) -> Case:
    classes = tuple(str(number) for number in range(golden.config["num_classes"]))
    settings = golden.config
    generator = Generator(
        ModelConfig(block=block, **model),  # type: ignore[arg-type]
        method,
        schedule,
        Vocabulary("class", classes, length=1),
        settings["vocab_size"],
        settings.get("z_channels", 1),
    ).eval()
    useless = [name for name in NEVER_FED if name not in generator.state_dict()]

    def used(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in ours_of(theirs).items() if name not in useless}

    generator.load_state_dict(used(golden.weights))
    return Case(golden, generator, used, schedule)


def llama_block(golden: Golden, **changes: object) -> BlockConfig:
    return BlockConfig(
        norm="rms",
        norm_eps=golden.config["norm_eps"],
        mlp_multiple=golden.config["multiple_of"],
        qk_norm="none",
        rope_base=golden.config.get("rope_base", 10000.0),
        rope_outside="zero",
        condition="start",
        **{"position": "rope"} | changes,  # type: ignore[arg-type]
    )


def llama_size(golden: Golden) -> dict[str, object]:
    config = golden.config
    return {
        "width": config["dim"],
        "depth": config["n_layer"],
        "heads": config["n_head"],
        "head_bias": False,
    }


def par_case(folder: Path) -> Case:
    golden = Golden(folder)
    config = golden.config
    side = round(config["ar_token_num"] ** 0.5)
    method = MethodConfig(name="par", regions=(1, side, side))
    if side == 1:
        method = MethodConfig(name="raster")
    return make_case(
        golden,
        method,
        llama_block(golden),
        single_grid(1, config["grid"], config["grid"]),
        lambda theirs: llamagen.par(theirs, config["n_layer"]),
        **llama_size(golden),
    )


def nar_image_case(folder: Path) -> Case:
    golden = Golden(folder)
    config = golden.config
    return make_case(
        golden,
        MethodConfig(name="nar"),
        llama_block(golden),
        single_grid(1, config["grid"], config["grid"]),
        lambda theirs: llamagen.nar_image(theirs, config["n_layer"]),
        head_blocks=(config["medusa_attention_num"],),
        **llama_size(golden),
    )


def nar_video_case(folder: Path) -> Case:
    """The reference counts blocks from the end: head D has attn_num_back of them, B the others."""
    golden = Golden(folder)
    config = golden.config
    return make_case(
        golden,
        MethodConfig(name="nar", time_head=True),
        llama_block(golden, position="table"),
        single_grid(*config["latent_shape"]),
        lambda theirs: llamagen.nar_video(theirs, config["n_layer"]),
        head_blocks=(config["attn_num_back"], config["attn_num_down"]),
        **llama_size(golden),
    )


def arpg_case(folder: Path, **method: object) -> Case:
    golden = Golden(folder)
    config = golden.config
    return make_case(
        golden,
        MethodConfig(name="arpg", **method),  # type: ignore[arg-type]
        llama_block(golden),
        single_grid(1, config["grid"], config["grid"]),
        lambda theirs: llamagen.arpg(theirs, config["vocab_size"]),
        **llama_size(golden) | {"depth": config["n_layer"] // 2 * 2},
    )


def var_case(folder: Path) -> Case:
    golden = Golden(folder)
    config = golden.config
    block = BlockConfig(
        norm="layer",
        norm_eps=config["norm_eps"],
        mlp="gelu_tanh",
        mlp_ratio=config["mlp_ratio"],
        qk_norm="l2" if config["attn_l2_norm"] else "none",
        attention_scale=1.0 if config["attn_l2_norm"] else 0.25,
        condition="shared_adaln" if config["shared_aln"] else "adaln",
        bias=True,
    )
    return make_case(
        golden,
        MethodConfig(name="next_scale"),
        block,
        image_and_clip(1, config["patch_nums"]),
        var,
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
    )


def tokenizer_of(golden: Golden) -> Tokenizer:
    """The tokenizer that a folder names, at the transformer's scales."""
    path = golden.folder / golden.description["weights_from"]["vae"]
    settings = Golden(path.parent).config
    asked = {
        "quantizer.scales": golden.config["patch_nums"],
        "quantizer.metric": "cosine" if settings["using_znorm"] else "l2",
        **{f"quantizer.{key}": value for key, value in phi_settings(settings).items()},
    }
    return load_published(path, asked).tokenizer


def known_of(case: Case, codes: Tensor, sequence: Tensor | None = None) -> Known:
    if sequence is None:
        order = case.generator.layout_for(case.schedule).order
        sequence = torch.from_numpy(order.sequence)[None]
    features = None
    if case.generator.num_features:
        features = input_features(
            tokenizer_of(case.golden).quantizer, codes, case.schedule, case.generator.num_features
        )
    return Known(sequence, codes, features)


def teacher_forced(case: Case) -> tuple[Known, Tensor]:
    """What is known, and the cell behind each column of the recorded logits."""
    recorded = case.golden.recorded
    codes = recorded.get("tf_raster_tokens", recorded["tf_tokens"])
    sequence = recorded.get("tf_orders")
    known = known_of(case, codes, sequence)
    columns = torch.arange(codes.shape[1])[None]
    if "perm" in recorded or sequence is not None:
        columns = known.sequence
    return known, columns.expand(len(codes), -1)


def in_columns(logits: Tensor, columns: Tensor) -> Tensor:
    return logits.gather(1, columns[..., None].expand_as(logits))


def check_forward(case: Case) -> None:
    golden, generator = case.golden, case.generator
    known, columns = teacher_forced(case)
    labels = golden.recorded["tf_labels"]
    with torch.no_grad():
        logits = generator(known, case.prompts(labels), case.schedule)
        golden.check("tf_logits", in_columns(logits, columns))
        dropped = golden.recorded["tf_drop_uniform"] < DROPPED
        prompts = case.prompts(torch.where(dropped, -1, labels))
        logits = generator(known, prompts, case.schedule)
        golden.check("tf_drop_logits", in_columns(logits, columns))


def check_gradients(case: Case) -> None:
    golden, generator = case.golden, case.generator
    wanted = golden.scalars["grad_norms"]
    theirs = {
        name: value.clone().requires_grad_(name in wanted) for name, value in golden.weights.items()
    }
    known, _ = teacher_forced(case)
    logits = torch.func.functional_call(
        generator,
        case.ours_of(theirs),
        (known, case.prompts(golden.recorded["tf_labels"]), case.schedule),
    )
    loss = F.cross_entropy(logits.flatten(0, 1), known.codes.flatten())
    if "tf_loss" in golden.recorded:
        golden.check("tf_loss", loss.detach().view_as(golden.recorded["tf_loss"]), LOSSES)
    assert float(loss.detach()) == pytest.approx(golden.scalars["tf_loss"], rel=1e-5, abs=1e-6)
    loss.backward()
    golden.check_gradient_norms({name: theirs[name].grad for name in wanted})


def check_mask(case: Case) -> None:
    """The mask rule gives the reference's mask, whose rows are in storage order."""
    recorded = case.golden.recorded
    layout = case.generator.layout_for(case.schedule)
    sight = Sight(torch.from_numpy(layout.step), torch.from_numpy(layout.role))
    mask = dense_mask(sight, sight)
    mask = mask[0, 0]
    if "attn_bias_for_masking" in case.golden.weights:
        assert torch.equal(mask, case.golden.weights["attn_bias_for_masking"][0, 0] == 0)
    elif "group_mask" in recorded:
        rows = layout.num_rows
        for theirs in ("tf_input_mask", "group_mask"):  # with rows that predict nothing behind
            assert torch.equal(mask, recorded[theirs][:rows, :rows])
        assert layout.order.sequence.tolist() == recorded["perm"].tolist()
    elif "proximity_mask" in recorded or "diagonal_mask" in recorded:
        theirs = recorded.get("proximity_mask", recorded.get("diagonal_mask"))
        rows = np.concatenate([[0], 1 + layout.order.sequence[:-1]])  # the last predicts nothing
        assert torch.equal(mask, theirs[rows][:, rows])
        assert layout.order.sequence.tolist() == recorded["gen_order"].tolist()


def check_rotations(case: Case) -> None:
    if "freqs_cis" not in case.golden.recorded:
        return
    generator = case.generator
    layout = generator.layout_for(case.schedule)
    is_context = layout.role == Role.CONTEXT
    places = layout.position[is_context]
    cells = np.where(places < 0, len(generator.cosines) - 1, layout.order.sequence[places])
    found = torch.stack([generator.cosines[cells], generator.sines[cells]], dim=-1)
    theirs = case.golden.recorded["freqs_cis"]
    if "perm" not in case.golden.recorded:  # theirs is in raster order
        theirs = theirs[np.concatenate([[0], 1 + layout.order.sequence])]
    torch.testing.assert_close(found, theirs[: len(found)], rtol=1e-6, atol=1e-6)


class Watched:
    """What sampling showed: guided logits and cells in the order of generation."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.f_hat: list[Tensor] = []

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step.clip.features is not None:
            self.f_hat.append(step.clip.latents.squeeze(2).clone())

    @property
    def logits(self) -> Tensor:
        return torch.cat([step.logits for step in self.steps], dim=1)


def generate(
    case: Case,
    labels: Tensor,
    guidance: Callable[[Moment], float] | None,
    quantizer: MultiScaleQuantizer | None = None,
    sequence: Tensor | None = None,
) -> tuple[Tensor, Watched]:
    watched = Watched()
    settings = SampleConfig(temperature=0.0, guidance=GuidanceConfig(scale=1.0))
    codes = sample_codes(
        case.generator,
        case.prompts(labels),
        case.schedule,
        settings,
        range(len(labels)),
        quantizer,
        guidance=guidance,
        sequence=sequence,
        watch=watched,
    )
    return codes, watched


def until(limit: int, scale: float, counter: Callable[[Moment], int]) -> Callable[[Moment], float]:
    """LlamaGen's `cfg_interval`: guided until a counter passes the limit (-1: always)."""
    return lambda moment: 1.0 if -1 < limit < counter(moment) else scale


def par_counter(group: int) -> Callable[[Moment], int]:
    """PAR's counter begins again with the groups; the prediction behind the class is before it."""
    return lambda moment: moment.step - 1 if moment.step < group else (moment.step - group) * group


def check_generation(case: Case) -> None:
    golden, config = case.golden, case.golden.config
    group = config.get("ar_token_num")
    for name, settings in golden.scalars.items():
        if not (isinstance(settings, dict) and "cfg_interval" in settings):
            continue
        counter = par_counter(group) if group else lambda moment: moment.cells_before
        scale = settings["cfg_scale"]
        guidance = until(settings["cfg_interval"], scale, counter) if scale > 1 else None
        codes, watched = generate(case, golden.recorded["gen_labels"], guidance)
        golden.check(f"{name}_raster" if group else f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
    steps = case.generator.layout_for(case.schedule, training=False).order.num_steps
    assert steps == _expected_steps(case)


def _expected_steps(case: Case) -> int:
    group, shape = case.golden.config.get("ar_token_num"), case.schedule.grid
    assert shape is not None
    return prod(shape) // group + group - 1 if group else sum(shape) - 2


ALL = [check_forward, check_gradients, check_mask, check_rotations, check_generation]


@pytest.mark.parametrize("check", ALL)
@pytest.mark.golden("par_gpt_*")
def test_par_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(par_case(golden_folder))


@pytest.mark.parametrize("check", ALL)
@pytest.mark.golden("nar_image*")
def test_nar_of_images_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(nar_image_case(golden_folder))


@pytest.mark.parametrize("check", ALL)
@pytest.mark.golden("nar_video*")
def test_nar_of_video_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(nar_video_case(golden_folder))


@pytest.mark.parametrize("check", [check_forward, check_gradients, check_rotations])
@pytest.mark.golden("arpg*")
def test_arpg_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(arpg_case(golden_folder))


@pytest.mark.golden("arpg*")
def test_arpg_generates_as_recorded(golden_folder: Path) -> None:
    golden = Golden(golden_folder)
    for name, settings in golden.scalars.items():
        if not (isinstance(settings, dict) and "num_iter" in settings):
            continue
        case = arpg_case(
            golden_folder, num_steps=settings["num_iter"], sizes=settings["sample_schedule"]
        )
        order = case.generator.layout_for(case.schedule, training=False).order
        assert list(order.sizes) == golden.recorded[f"{name}_num_pred"].tolist()
        config = GuidanceConfig(kind=settings["cfg_schedule"], scale=settings["guidance_scale"])
        guidance = partial(guidance_scale, config)
        sequence = golden.recorded[f"{name}_order"][None]
        codes, watched = generate(case, golden.recorded["gen_labels"], guidance, sequence=sequence)
        golden.check(f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
        scales = torch.tensor([step.scale for step in watched.steps])
        golden.check(f"{name}_cfg_scale", scales)


@pytest.mark.parametrize("check", [check_forward, check_gradients, check_mask])
@pytest.mark.golden("var_transformer_*")
def test_var_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(var_case(golden_folder))


@pytest.mark.golden("var_transformer_*")
def test_var_generates_as_recorded(golden_folder: Path) -> None:
    case = var_case(golden_folder)
    golden = case.golden
    tokenizer = tokenizer_of(golden)
    for name in ("gen_a", "gen_b", "gen_u"):
        config = GuidanceConfig(kind="ramp", scale=1 + golden.scalars[f"{name}_cfg"])
        codes, watched = generate(
            case,
            golden.recorded[f"{name}_labels"],
            partial(guidance_scale, config),
            tokenizer.quantizer,
        )
        golden.check(f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
        golden.check(f"{name}_f_hat", torch.stack(watched.f_hat))
        latents = tokenizer.quantizer.decode(codes, case.schedule)
        image = tokenizer.autoencoder.decode_canonically(latents).squeeze(2)
        golden.check(f"{name}_image", (image.clamp(-1, 1) + 1) / 2)
