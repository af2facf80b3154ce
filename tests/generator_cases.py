"""Golden folders of generators as ours: their settings and weights, and what they fed.

case = nar_image_case(folder)
case.generator.by_cell(known_of(case, codes), case.prompts(labels), case.schedule)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import Golden, phi_settings
from tokenizer.model import Tokenizer
from tokenizer.published import load_published
from tokenizer.scales import Schedule, image_and_clip, single_grid
from training.block_config import BlockConfig
from training.compat import llamagen
from training.compat.var import var
from training.config import ModelConfig
from training.generator import Generator, Known
from training.method_config import MethodConfig
from training.partial import input_features
from training.vocabulary import ABSENT, Vocabulary

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
    group, special = config["ar_token_num"], config["spe_token_num"]
    side = isqrt(group)
    if side**2 != group or special != group - 1:
        pytest.skip(f"{folder.name}: {group} tokens one by one and {special} special; PAR has n^2")
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
        "quantizer.metric": "cosine" if settings.get("using_znorm") else "l2",
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
