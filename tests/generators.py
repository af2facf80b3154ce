"""Small generators of every method for tests, all of whose weights are random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule, image_and_clip, single_grid
from training.block_config import BlockConfig
from training.caption_features import CaptionFeatures
from training.config import ModelConfig
from training.generator import Generator, Known
from training.method_config import MethodConfig
from training.partial import feature_channels, input_features
from training.vocabulary import Vocabulary, build_vocabulary

PYRAMID = image_and_clip(3, (1, 2))
LARGER = image_and_clip(2, (1, 2, 4))
GRID = image_and_clip(3, [(2, 4)])
CODEBOOK_SIZE = 16
PROMPTS = {
    "none": [None, None, None],
    "class": ["seven", None, "three"],
    "text": ["a red seven", None, "three moving left"],
    "clip_text": ["a red seven", None, "three moving left"],
}


@dataclass(frozen=True)
class Variant:
    """A method on a schedule that it is for."""

    name: str
    method: MethodConfig
    schedule: Schedule

    def __str__(self) -> str:
        return self.name


VARIANTS = [
    Variant("next_scale", MethodConfig(name="next_scale"), PYRAMID),
    *(
        Variant(
            f"next_scale-{inner}",
            MethodConfig(name="next_scale", inner=inner, inner_cells=4, **more),
            LARGER,
        )
        for inner, more in (
            ("raster", {}),
            ("par", {}),
            ("nar", {}),
            ("random", {"num_steps": 3, "frame_causal": True}),
        )
    ),
    Variant("raster-pyramid", MethodConfig(name="raster"), PYRAMID),
    Variant("raster", MethodConfig(name="raster"), GRID),
    Variant("par", MethodConfig(name="par", regions=(1, 2, 2)), GRID),
    Variant("par-time", MethodConfig(name="par", regions=(3, 1, 2)), GRID),
    Variant("par-all", MethodConfig(name="par", regions=(3, 2, 4)), GRID),
    Variant("nar", MethodConfig(name="nar"), GRID),
    Variant("nar-frames", MethodConfig(name="nar", frame_causal=True), GRID),
    Variant("nar-image", MethodConfig(name="nar"), single_grid(1, 3, 4)),
    Variant("nar-image-3", MethodConfig(name="nar", time_head=True), single_grid(1, 3, 4)),
    Variant("arpg", MethodConfig(name="arpg", num_steps=5), GRID),
    Variant("arpg-frames", MethodConfig(name="arpg", num_steps=2, frame_causal=True), GRID),
]

BLOCKS = {
    "default": BlockConfig(),
    "rope": BlockConfig(position="rope", condition="start", norm="rms"),
    "adaln": BlockConfig(condition="adaln", qk_norm="l2", bias=True, mlp="gelu_tanh"),
    "shared": BlockConfig(condition="shared_adaln", qk_norm="none", attention_scale=0.25),
    "dropout": BlockConfig(norm="rms", mlp="gelu_tanh", qk_norm="none", bias=True, dropout=0.1),
}

SETTINGS = [
    ("none", "default"),
    ("class", "adaln"),
    ("class", "rope"),
    ("text", "default"),
    ("text", "shared"),
    ("text", "dropout"),
    ("clip_text", "default"),
]
"""Kinds of condition, each with some blocks."""

_EACH_METHOD = ("next_scale", "raster", "par", "nar", "arpg")
CASES = [
    (variant, *setting)
    for number, variant in enumerate(VARIANTS)
    for index, setting in enumerate(SETTINGS)
    if variant.name in _EACH_METHOD or index % 3 == number % 3
]
"""(variant, kind, block): each method with all settings, its other variants with some in turn."""


@cache
def make_quantizer() -> MultiScaleQuantizer:
    """One for all tests."""
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(codebook_size=CODEBOOK_SIZE, codebook_dim=4, num_phi=1)
    )
    quantizer.codebook.set_codes(torch.randn(CODEBOOK_SIZE, 4))
    return quantizer.eval()


@cache
def make_vocabulary(kind: str) -> Vocabulary:
    prompts = [each for each in PROMPTS[kind] if each] or ["unused"]
    vocabulary = build_vocabulary(kind, prompts, max_pieces=8)
    return replace(vocabulary, tower=make_features().tower) if kind == "clip_text" else vocabulary


def make_features() -> CaptionFeatures:
    """What no tower said of two captions, of five and of seven pieces."""
    drawn = torch.Generator().manual_seed(4)
    return CaptionFeatures(
        captions=("a red seven", "three moving left"),
        counts=torch.tensor([5, 7]),
        pieces=torch.randn(12, 6, generator=drawn).half(),
        pooled=torch.randn(2, 4, generator=drawn).half(),
        model="none",
        sha256="0",
    )


def make_generator(
    variant: Variant, kind: str, block: BlockConfig | None = None, width: int = 16
) -> Generator:
    """A small generator whose weights are all random (zero ones would hide mistakes)."""
    quantizer = make_quantizer()
    torch.manual_seed(1)
    generator = Generator(
        ModelConfig(width=width, depth=2, heads=2, block=block or BlockConfig()),
        variant.method,
        variant.schedule,
        make_vocabulary(kind),
        CODEBOOK_SIZE,
        feature_channels(quantizer, variant.schedule),
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    if kind == "clip_text":
        generator.condition.told = make_features()
    return generator.eval()


@cache
def shared_generator(variant: Variant, kind: str, block: str = "default") -> Generator:
    """That of all tests that ask it and do not change it; it is made once."""
    return make_generator(variant, kind, BLOCKS[block])


def encoded(kind: str) -> Tensor:
    vocabulary = make_vocabulary(kind)
    rows = [vocabulary.encode(each) for each in PROMPTS[kind]]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), vocabulary.length)


def random_codes(schedule: Schedule, seed: int = 2) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (3, schedule.num_tokens), generator=drawn)


def known_of(
    generator: Generator,
    codes: Tensor,
    training: bool = True,
    schedule: Schedule | None = None,
) -> Known:
    """Known clips, each in an order of its own where orders are random."""
    schedule = schedule or generator.schedule
    order = generator.layout_for(schedule, training).order
    drawn = [order.drawn(np.random.default_rng(seed)) for seed in range(len(codes))]
    features = None
    if generator.num_features:
        features = input_features(make_quantizer(), codes, schedule, generator.num_features)
    return Known(torch.from_numpy(np.stack(drawn)), codes, features)
