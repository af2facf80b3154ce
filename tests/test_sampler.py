"""The sampling loop: cache, guidance, filters, and draws that do not depend on the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import image_and_clip
from training.config import GuidanceConfig, ModelConfig, SampleConfig
from training.generator import Generator
from training.methods import METHODS
from training.partial import input_features
from training.sampler import Moment, draw, filtered, guidance_scale, sample_codes
from training.vocabulary import build_vocabulary

SCHEDULE = image_and_clip(3, (1, 2))
CODEBOOK_SIZE = 16
PROMPTS = {"none": [], "class": ["seven", "three"], "text": ["a red seven", "three moving left"]}
GUIDED = SampleConfig(guidance=GuidanceConfig(kind="constant", scale=2.0))
UNGUIDED = SampleConfig(guidance=GuidanceConfig(scale=1.0))


@pytest.fixture(scope="module")
def quantizer() -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(codebook_size=CODEBOOK_SIZE, codebook_dim=4, num_phi=1)
    )
    quantizer.codebook.set_codes(torch.randn(CODEBOOK_SIZE, 4))
    return quantizer.eval()


def make_case(method: str, kind: str, num_samples: int) -> tuple[Generator, torch.Tensor]:
    torch.manual_seed(1)
    vocabulary = build_vocabulary(kind, PROMPTS[kind], max_pieces=8)
    config = ModelConfig(width=16, depth=2, heads=2)
    generator = Generator(config, method, SCHEDULE, vocabulary, CODEBOOK_SIZE, 8)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    prompts = (PROMPTS[kind] or [None]) * num_samples
    encoded = torch.tensor([vocabulary.encode(each) for each in prompts[:num_samples]])
    return generator.eval(), encoded.view(num_samples, vocabulary.length).long()


@pytest.mark.parametrize("settings", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
def test_samples_with_a_cache_are_those_of_a_full_pass_per_step(
    method: str, kind: str, settings: SampleConfig, quantizer: MultiScaleQuantizer
) -> None:
    generator, prompts = make_case(method, kind, 6)
    fast, slow = (
        sample_codes(generator, prompts, SCHEDULE, settings, range(6), quantizer, cached=cached)
        for cached in (True, False)
    )
    assert torch.equal(fast, slow)
    assert len(fast.unique()) > 2


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_greedy_samples_are_what_teacher_forcing_on_them_finds_likeliest(
    method: str, kind: str, quantizer: MultiScaleQuantizer
) -> None:
    generator, prompts = make_case(method, kind, 4)
    settings = replace(UNGUIDED, temperature=0.0)
    codes = sample_codes(generator, prompts, SCHEDULE, settings, range(4), quantizer)
    features = input_features(quantizer, codes, SCHEDULE)
    assert torch.equal(generator(codes, features, prompts, SCHEDULE).argmax(dim=-1), codes)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_its_batch(method: str, quantizer: MultiScaleQuantizer) -> None:
    generator, prompts = make_case(method, "text", 8)
    whole = sample_codes(generator, prompts, SCHEDULE, GUIDED, range(8), quantizer)
    parts = [
        sample_codes(
            generator, prompts[start:stop], SCHEDULE, GUIDED, range(start, stop), quantizer
        )
        for start, stop in ((0, 1), (1, 6), (6, 8))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_another_seed_or_number_gives_another_sample(quantizer: MultiScaleQuantizer) -> None:
    generator, prompts = make_case("raster", "none", 1)
    settings = replace(UNGUIDED, temperature=5.0)
    samples = [
        sample_codes(generator, prompts, SCHEDULE, replace(settings, seed=seed), [number], None)
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
