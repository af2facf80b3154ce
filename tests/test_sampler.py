"""The sampling loop: cache, guidance, filters, and draws that do not depend on the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.generators import (
    BLOCKS,
    SETTINGS,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    make_quantizer,
)
from training.config import GuidanceConfig, SampleConfig
from training.generator import Known
from training.partial import input_features
from training.sampler import Moment, draw, filtered, guidance_scale, sample_codes

GUIDED = SampleConfig(guidance=GuidanceConfig(kind="constant", scale=2.0))
UNGUIDED = SampleConfig(guidance=GuidanceConfig(scale=1.0))
BY_NAME = {variant.name: variant for variant in VARIANTS}
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)


@pytest.mark.parametrize(("kind", "block"), SETTINGS)
@every_variant
def test_samples_with_a_cache_are_those_of_a_full_pass_per_step(
    variant: Variant, kind: str, block: str
) -> None:
    generator, prompts = make_generator(variant, kind, BLOCKS[block]), encoded(kind)
    settings = UNGUIDED if kind == "none" else GUIDED
    quantizer = make_quantizer()
    fast, slow = (
        sample_codes(
            generator, prompts, variant.schedule, settings, range(3), quantizer, cached=cached
        )
        for cached in (True, False)
    )
    assert torch.equal(fast, slow)
    assert len(fast.unique()) > 2


@every_variant
@torch.no_grad()
def test_greedy_samples_are_what_teacher_forcing_on_them_finds_likeliest(variant: Variant) -> None:
    method = replace(variant.method, num_steps=None)  # as in training: a cell a step
    variant = replace(variant, method=method)
    generator, prompts = make_generator(variant, "text"), encoded("text")
    quantizer = make_quantizer()
    settings = replace(UNGUIDED, temperature=0.0)
    sequence = known_of(generator, torch.zeros(3, variant.schedule.num_tokens).long()).sequence
    codes = sample_codes(
        generator, prompts, variant.schedule, settings, range(3), quantizer, sequence=sequence
    )
    features = None
    if generator.num_features:
        features = input_features(quantizer, codes, variant.schedule, generator.num_features)
    logits = generator(Known(sequence, codes, features), prompts, variant.schedule)
    assert torch.equal(logits.argmax(dim=-1), codes)


@every_variant
def test_a_sample_does_not_depend_on_its_batch(variant: Variant) -> None:
    generator, prompts = make_generator(variant, "text"), encoded("text").repeat(2, 1)
    quantizer = make_quantizer()
    whole = sample_codes(generator, prompts, variant.schedule, GUIDED, range(6), quantizer)
    parts = [
        sample_codes(
            generator, prompts[start:stop], variant.schedule, GUIDED, range(start, stop), quantizer
        )
        for start, stop in ((0, 1), (1, 4), (4, 6))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", ["raster", "arpg"])
def test_another_seed_or_number_gives_another_sample(name: str) -> None:
    variant = BY_NAME[name]
    generator, prompts = make_generator(variant, "none"), encoded("none")[:1]
    settings = replace(UNGUIDED, temperature=5.0)
    samples = [
        sample_codes(
            generator, prompts, variant.schedule, replace(settings, seed=seed), [number], None
        )
        for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert torch.equal(samples[0], samples[3])
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_codes_are_drawn_with_the_probabilities_of_the_logits() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 3000, 3)
    uniform = (torch.arange(3000, dtype=torch.float64)[None] + 0.5) / 3000
    drawn = draw(logits, uniform, SampleConfig())
    assert torch.bincount(drawn[0]).tolist() == [1500, 900, 600]


def test_a_code_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]])
    for value in (0.0, 0.5, 1 - 1e-16):
        assert int(draw(logits, torch.tensor([[value]], dtype=torch.float64), SampleConfig())) in (
            1,
            3,
        )


def test_filters_keep_the_likeliest() -> None:
    logits = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).log()
    assert (filtered(logits, 2, 1.0) > -math.inf).tolist() == [[[False, False, True, True]]]
    assert (filtered(logits, 0, 0.65) > -math.inf).tolist() == [[[False, False, True, True]]]
    assert (filtered(logits, 0, 0.1) > -math.inf).tolist() == [[[False, False, False, True]]]
    assert torch.equal(filtered(logits, 0, 1.0), logits)


def test_guidance_schedules_are_functions_of_the_step_and_of_the_cells_done() -> None:
    moments = [Moment(0, 3, 0, 1, 8), Moment(1, 3, 1, 4, 8), Moment(2, 3, 4, 8, 8)]

    def scales(**settings: object) -> list[float]:
        config = GuidanceConfig(scale=3.0, **settings)  # type: ignore[arg-type]
        return [guidance_scale(config, moment) for moment in moments]

    assert scales(kind="constant") == [3, 3, 3]
    assert scales(kind="linear") == [1.25, 2, 3]
    assert scales(kind="ramp") == [1, 2, 3]
    assert scales(kind="interval", start=0.1, end=0.5) == [1, 3, 1]
