"""The sampling loop: cache, guidance, filters, and draws that do not depend on the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.generators import (
    BLOCKS,
    CASES,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    make_quantizer,
    shared_generator,
)
from tokenizer.settings import UserError
from training.config import GuidanceConfig, SampleConfig
from training.generator import Known
from training.partial import input_features
from training.sampler import Step, layout_of, sampling
from training.samples import in_precision

GUIDED = SampleConfig(guidance=GuidanceConfig(kind="constant", scale=2.0))
UNGUIDED = SampleConfig(guidance=GuidanceConfig(scale=1.0))
BY_NAME = {variant.name: variant for variant in VARIANTS}
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)


@pytest.mark.parametrize(("variant", "kind", "block"), CASES, ids=str)
def test_samples_with_a_cache_are_those_of_a_full_pass_per_step(
    variant: Variant, kind: str, block: str
) -> None:
    generator, prompts = shared_generator(variant, kind, block), encoded(kind)
    settings = UNGUIDED if kind == "none" else GUIDED
    quantizer = make_quantizer()
    fast, slow = (
        sampling(
            generator, prompts, variant.schedule, settings, range(3), quantizer, cached=cached
        ).codes()
        for cached in (True, False)
    )
    assert torch.equal(fast, slow)
    assert len(fast.unique()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["next_scale", "nar", "arpg"])
def test_compiled_steps_on_a_static_cache_give_the_same_samples(name: str) -> None:
    variant = BY_NAME[name]
    generator, prompts, quantizer = make_generator(variant, "text"), encoded("text"), None
    if generator.num_features:
        quantizer = make_quantizer()
    torch._dynamo.reset()
    counters.clear()
    eager, compiled, again = (
        sampling(
            generator,
            prompts,
            variant.schedule,
            replace(GUIDED, compile=is_compiled),
            range(3),
            quantizer,
        ).codes()
        for is_compiled in (False, True, True)
    )
    assert torch.equal(eager, compiled)
    assert torch.equal(eager, again)
    num_graphs = counters["stats"]["unique_graphs"]
    assert 1 <= num_graphs <= 3
    pyramid = quantizer if generator.num_features else None
    one = (prompts[:1], variant.schedule, GUIDED, range(1), pyramid)
    sampling(generator, *one).codes()
    assert counters["stats"]["unique_graphs"] == num_graphs  # eager loops stay eager
    doubled = sampling(generator.double(), *one).codes()
    assert torch.equal(
        doubled, sampling(generator, *one[:2], replace(GUIDED, compile=True), *one[3:]).codes()
    )


@every_variant
@torch.no_grad()
def test_greedy_samples_are_what_teacher_forcing_on_them_finds_likeliest(variant: Variant) -> None:
    method = replace(variant.method, num_steps=None)  # as in training: a cell a step
    variant = replace(variant, method=method)
    generator, prompts = shared_generator(variant, "text"), encoded("text")
    quantizer = make_quantizer()
    settings = replace(UNGUIDED, temperature=0.0)
    sequence = known_of(generator, torch.zeros(3, variant.schedule.num_tokens).long()).sequence
    codes = sampling(
        generator, prompts, variant.schedule, settings, range(3), quantizer, sequence=sequence
    ).codes()
    features = None
    if generator.num_features:
        features = input_features(quantizer, codes, variant.schedule, generator.num_features)
    logits = generator.by_cell(Known(sequence, codes, features), prompts, variant.schedule)
    assert torch.equal(logits.argmax(dim=-1), codes)


@pytest.mark.parametrize("name", ["next_scale", "raster", "par", "nar", "arpg"])
def test_greedy_codes_in_bfloat16_are_mostly_those_of_float32(name: str) -> None:
    variant, codes = BY_NAME[name], []
    for precision in ("float32", "bfloat16"):
        steps: list[Step] = []
        made = sampling(
            in_precision(make_generator(variant, "text"), precision),
            encoded("text"),
            variant.schedule,
            replace(GUIDED, temperature=0.0),
            range(3),
            make_quantizer(),
        ).codes(steps.append)
        codes.append(made)
        assert {step.logits.dtype for step in steps} == {torch.float32}
    assert (codes[0] == codes[1]).float().mean() > 0.7


@every_variant
def test_a_sample_does_not_depend_on_its_batch(variant: Variant) -> None:
    generator, prompts = shared_generator(variant, "text"), encoded("text").repeat(2, 1)
    quantizer = make_quantizer()
    whole = sampling(generator, prompts, variant.schedule, GUIDED, range(6), quantizer).codes()
    parts = [
        sampling(
            generator, prompts[start:stop], variant.schedule, GUIDED, range(start, stop), quantizer
        ).codes()
        for start, stop in ((0, 1), (1, 4), (4, 6))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", ["raster", "arpg"])
def test_another_seed_or_number_gives_another_sample(name: str) -> None:
    variant = BY_NAME[name]
    generator, prompts = shared_generator(variant, "none"), encoded("none")[:1]
    settings = replace(UNGUIDED, temperature=5.0)
    samples = [
        sampling(
            generator, prompts, variant.schedule, replace(settings, seed=seed), [number], None
        ).codes()
        for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert torch.equal(samples[0], samples[3])
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("name", ["arpg", "next_scale-random"])
def test_random_orders_take_any_steps_from_one_set_of_weights(name: str) -> None:
    variant = BY_NAME[name]
    generator, prompts = shared_generator(variant, "none"), encoded("none")
    quantizer = make_quantizer()
    settings = replace(UNGUIDED, num_steps=2, sizes="uniform")
    method = replace(variant.method, num_steps=2, sizes="uniform")
    changed = shared_generator(replace(variant, method=method), "none")
    found, expected = (
        sampling(each, prompts, variant.schedule, chosen, range(3), quantizer).codes()
        for each, chosen in ((generator, settings), (changed, UNGUIDED))
    )
    assert torch.equal(found, expected)
    assert layout_of(generator, variant.schedule, settings).order.num_steps < (
        layout_of(generator, variant.schedule, UNGUIDED).order.num_steps
    )


def test_a_generator_in_training_mode_is_refused() -> None:
    generator = make_generator(BY_NAME["raster"], "none", BLOCKS["dropout"]).train()
    with pytest.raises(ValueError, match="training mode"):
        sampling(generator, encoded("none"), generator.schedule, UNGUIDED, range(3)).codes()


@pytest.mark.parametrize("name", ["raster", "par", "nar", "next_scale", "next_scale-nar"])
def test_steps_of_an_order_that_fixes_them_are_refused(name: str) -> None:
    generator = shared_generator(BY_NAME[name], "none")
    for wrong in (replace(UNGUIDED, num_steps=2), replace(UNGUIDED, sizes="uniform")):
        with pytest.raises(UserError, match="num_steps and sizes are for random orders"):
            layout_of(generator, generator.schedule, wrong)
