"""PAR's, NAR's, VAR's and ARPG's transformers against numbers of their reference implementations.

Names and settings are read from each folder, so other folders of the same layout are tested too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.generator_cases import (
    Case,
    arpg_case,
    known_of,
    nar_image_case,
    nar_video_case,
    par_case,
    teacher_forced,
    tokenizer_of,
    var_case,
)
from tests.golden import LATENTS, LOSSES, Golden, lacking
from tokenizer.checkpoint import Checkpoint
from tokenizer.key_report import check_keys
from tokenizer.quantizer import MultiScaleQuantizer
from training.attention import Sight, dense_mask
from training.compat.models import block_of, hidden_of
from training.compat.published import weights_in
from training.compat.reading import detect_layout, read_sizes
from training.compat.sizes import KEYS
from training.config import GuidanceConfig, SampleConfig
from training.fed_rows import FedRows
from training.generator import by_cell
from training.guidance import Moment, guidance_scale
from training.layout import Role
from training.positions import rotations
from training.sampler import Step, sampling

GUIDED = {"rtol": 1e-4, "atol": 3e-4}
DROPPED = 0.1
"""Of the labels in training, unless a folder says otherwise."""


def in_columns(logits: Tensor, columns: Tensor) -> Tensor:
    return logits.gather(1, columns[..., None].expand_as(logits))


def check_forward(case: Case) -> None:
    golden = case.golden
    golden.needs("tf_logits", "tf_labels")
    known, columns = teacher_forced(case)
    with torch.no_grad():
        prompts = case.prompts(golden.recorded["tf_labels"])
        logits = case.generator.by_cell(known, prompts, case.schedule)
    golden.check("tf_logits", in_columns(logits, columns))
    if "tf_var_input" in golden.recorded:
        first = case.schedule.offsets[1]
        assert known.features is not None
        golden.check("tf_var_input", known.features[:, first:])


def check_dropped_labels(case: Case) -> None:
    golden = case.golden
    golden.needs("tf_drop_logits", "tf_drop_uniform", "tf_labels")
    known, columns = teacher_forced(case)
    labels, uniform = golden.recorded["tf_labels"], golden.recorded["tf_drop_uniform"]
    dropped = uniform < golden.config.get("class_dropout_prob", DROPPED)
    with torch.no_grad():
        prompts = case.prompts(torch.where(dropped, -1, labels))
        logits = case.generator.by_cell(known, prompts, case.schedule)
    golden.check("tf_drop_logits", in_columns(logits, columns))


def check_gradients(case: Case) -> None:
    golden, generator = case.golden, case.generator
    if "grad_norms" not in golden.scalars:
        lacking(f"{golden.folder.name}: records no grad_norms")
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
    logits = by_cell(logits, known.sequence)
    loss = F.cross_entropy(logits.flatten(0, 1), known.codes.flatten())
    if "tf_loss" in golden.recorded:
        golden.check("tf_loss", loss.detach().view_as(golden.recorded["tf_loss"]), LOSSES)
    assert float(loss.detach()) == pytest.approx(golden.scalars["tf_loss"], rel=1e-5, abs=1e-6)
    loss.backward()
    golden.check_gradient_norms({name: theirs[name].grad for name in wanted})


def check_heads(case: Case) -> None:
    """Each head's own logits, before they are merged, at all rows that are fed (NAR)."""
    golden, generator = case.golden, case.generator
    video = len(generator.heads) == 3
    names = [f"tf_logits_{each}" for each in ("RDB" if video else ("right", "below"))]
    golden.needs(*names)
    known, _ = teacher_forced(case)
    layout = generator.layout_for(case.schedule)
    rows = FedRows.of(layout, np.arange(layout.num_rows), known.codes.device)
    with torch.no_grad():
        condition = generator.condition(case.prompts(golden.recorded["tf_labels"]))
        hidden = generator.hidden(rows, rows, condition, known)
        for name, head, output in zip(names, generator.heads, hidden, strict=True):
            theirs = golden.recorded[name][:, raster_rows(case)]
            torch.testing.assert_close(head(output), theirs, **LATENTS)


def raster_rows(case: Case) -> np.ndarray:
    """Their rows of ours: theirs are in raster order behind the class, the last asks nothing."""
    return np.concatenate([[0], 1 + case.generator.layout_for(case.schedule).order.sequence[:-1]])


def our_mask(case: Case) -> Tensor:
    layout = case.generator.layout_for(case.schedule)
    sight = Sight(torch.from_numpy(layout.step), torch.from_numpy(layout.role))
    return dense_mask(sight, sight)[0, 0]


def check_par_mask(case: Case) -> None:
    golden, mask = case.golden, our_mask(case)
    golden.needs("group_mask", "perm")
    rows = len(mask)
    for name in {"tf_input_mask", "group_mask", "gen_mask"} & golden.recorded.keys():
        theirs = golden.recorded[name][:rows, :rows]  # the last rows ask nothing
        assert torch.equal(mask, theirs), name
    sequence = case.generator.layout_for(case.schedule).order.sequence
    assert sequence.tolist() == golden.recorded["perm"].tolist()


def check_nar_mask(case: Case) -> None:
    golden, mask, rows = case.golden, our_mask(case), raster_rows(case)
    name = "diagonal_mask" if "latent_shape" in golden.config else "proximity_mask"
    golden.needs(name, "gen_order")
    for each in {name, "gen_mask"} & golden.recorded.keys():
        assert torch.equal(mask, golden.recorded[each][rows][:, rows]), each
    sequence = case.generator.layout_for(case.schedule).order.sequence
    assert sequence.tolist() == golden.recorded["gen_order"].tolist()


def check_var_mask(case: Case) -> None:
    if "attn_bias_for_masking" not in case.golden.weights:
        lacking(f"{case.golden.folder.name}: its weights have no attn_bias_for_masking")
    assert torch.equal(our_mask(case), case.golden.weights["attn_bias_for_masking"][0, 0] == 0)


def check_rotations(case: Case) -> None:
    case.golden.needs("freqs_cis")
    generator = case.generator
    layout = generator.layout_for(case.schedule)
    is_context = layout.role == Role.CONTEXT
    places = layout.position[is_context]
    theirs = case.golden.recorded["freqs_cis"]
    turned = rotations(case.schedule, generator.schedule, generator.config, theirs)
    cells = np.where(places < 0, len(turned[0]) - 1, layout.order.sequence[places])
    found = torch.stack([each[cells] for each in turned], dim=-1)
    if "perm" not in case.golden.recorded:  # theirs is in raster order
        theirs = theirs[np.concatenate([[0], 1 + layout.order.sequence])]
    torch.testing.assert_close(found, theirs[: len(found)], rtol=1e-6, atol=1e-6)


def check_published_layout(case: Case) -> None:
    """As a published file it is told by its keys, is whole, and its shapes tell its sizes."""
    golden, generator = case.golden, case.generator
    checkpoint = Checkpoint(
        path=golden.folder, sha256="", tensors=golden.weights, part=None, left_out=()
    )
    layout = detect_layout(checkpoint)
    sizes = read_sizes(checkpoint, layout, sum(generator.transformer.stacks.head_blocks))
    check_keys(golden.folder, KEYS[layout](sizes), weights_in(checkpoint, layout)[0])
    config = replace(
        generator.config, block=replace(generator.config.block, **block_of(layout, sizes))
    )
    assert hidden_of(layout, config) == sizes.hidden
    told = (sizes.width, sizes.depth, sizes.codebook_size, sizes.num_classes)
    settings = golden.config
    expected = (settings["vocab_size"], settings["num_classes"])
    assert told == (config.width, config.depth, *expected)


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


def generations(golden: Golden) -> list[str]:
    """Names of the recorded generations; skips the check where there is none."""
    ending = "_tokens"
    names = [name.removesuffix(ending) for name in golden.recorded if name.endswith(ending)]
    names = sorted(name for name in names if name.startswith("gen_"))
    if not names:
        lacking(f"{golden.folder.name}: records no gen_*{ending}")
    unsaid = [name for name in names if not {name, f"{name}_cfg"} & golden.scalars.keys()]
    assert not unsaid, f"{golden.folder}/config.json: scalars do not say how {unsaid} were made"
    return names


def generate(
    case: Case,
    name: str,
    guidance: Callable[[Moment], float] | None,
    quantizer: MultiScaleQuantizer | None = None,
    sequence: Tensor | None = None,
) -> tuple[Tensor, Watched]:
    recorded = case.golden.recorded
    labels = recorded[f"{name}_labels" if f"{name}_labels" in recorded else "gen_labels"]
    watched = Watched()
    settings = SampleConfig(temperature=0.0, guidance=GuidanceConfig(scale=1.0))
    codes = sampling(
        case.generator,
        case.prompts(labels),
        case.schedule,
        settings,
        range(len(labels)),
        quantizer,
        guidance=guidance,
        sequence=sequence,
    ).codes(watched)
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
    for name in generations(golden):
        settings = golden.scalars[name]
        counter = par_counter(group) if group else lambda moment: moment.cells_before
        scale = settings["cfg_scale"]
        guidance = until(settings.get("cfg_interval", -1), scale, counter) if scale > 1 else None
        codes, watched = generate(case, name, guidance)
        golden.check(f"{name}_raster" if group else f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
    steps = case.generator.layout_for(case.schedule, training=False).order.num_steps
    assert steps == _expected_steps(case)


def _expected_steps(case: Case) -> int:
    group, shape = case.golden.config.get("ar_token_num"), case.schedule.grid
    assert shape is not None
    return prod(shape) // group + group - 1 if group else sum(shape) - 2


TEACHER_FORCED = [check_published_layout, check_forward, check_dropped_labels, check_gradients]
PAR = [*TEACHER_FORCED, check_par_mask, check_rotations, check_generation]
NAR_VIDEO = [*TEACHER_FORCED, check_heads, check_nar_mask, check_generation]
NAR_IMAGE = [*NAR_VIDEO, check_rotations]


@pytest.mark.parametrize("check", PAR)
@pytest.mark.golden("par_gpt_*")
def test_par_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(par_case(golden_folder))


@pytest.mark.parametrize("check", NAR_IMAGE)
@pytest.mark.golden("nar_image*")
def test_nar_of_images_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(nar_image_case(golden_folder))


@pytest.mark.parametrize("check", NAR_VIDEO)
@pytest.mark.golden("nar_video*")
def test_nar_of_video_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(nar_video_case(golden_folder))


def check_raster_order(case: Case) -> None:
    golden = case.golden
    golden.needs("tf_raster_logits")
    codes = golden.recorded["tf_tokens"]
    known = known_of(case, codes, torch.arange(codes.shape[1])[None])
    with torch.no_grad():
        prompts = case.prompts(golden.recorded["tf_labels"])
        golden.check("tf_raster_logits", case.generator.by_cell(known, prompts, case.schedule))


@pytest.mark.parametrize("check", [*TEACHER_FORCED, check_raster_order, check_rotations])
@pytest.mark.golden("arpg*")
def test_arpg_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(arpg_case(golden_folder))


@pytest.mark.golden("arpg*")
def test_arpg_generates_as_recorded(golden_folder: Path) -> None:
    golden = Golden(golden_folder)
    for name in generations(golden):
        settings = golden.scalars[name]
        case = arpg_case(
            golden_folder, num_steps=settings["num_iter"], sizes=settings["sample_schedule"]
        )
        order = case.generator.layout_for(case.schedule, training=False).order
        assert list(order.sizes) == golden.recorded[f"{name}_num_pred"].tolist()
        config = GuidanceConfig(kind=settings["cfg_schedule"], scale=settings["guidance_scale"])
        guidance = partial(guidance_scale, config)
        sequence = golden.recorded[f"{name}_order"][None]
        codes, watched = generate(case, name, guidance, sequence=sequence)
        golden.check(f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
        scales = torch.tensor([step.scale for step in watched.steps])
        golden.check(f"{name}_cfg_scale", scales)


@pytest.mark.parametrize("check", [*TEACHER_FORCED, check_var_mask])
@pytest.mark.golden("var_transformer_*")
def test_var_is_as_recorded(golden_folder: Path, check: Callable[[Case], None]) -> None:
    check(var_case(golden_folder))


@pytest.mark.golden("var_transformer_*")
def test_var_generates_as_recorded(golden_folder: Path) -> None:
    case = var_case(golden_folder)
    golden = case.golden
    tokenizer = tokenizer_of(golden)
    for name in generations(golden):
        config = GuidanceConfig(kind="ramp", scale=1 + golden.scalars[f"{name}_cfg"])
        codes, watched = generate(case, name, partial(guidance_scale, config), tokenizer.quantizer)
        golden.check(f"{name}_tokens", codes)
        golden.check(f"{name}_logits", watched.logits, GUIDED)
        golden.check(f"{name}_f_hat", torch.stack(watched.f_hat))
        latents = tokenizer.quantizer.decode(codes, case.schedule)
        image = tokenizer.autoencoder.decode_canonically(latents).squeeze(2)
        golden.check(f"{name}_image", (image.clamp(-1, 1) + 1) / 2)
