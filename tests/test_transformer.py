"""The generator under teacher forcing: nothing sees the future, and a cache changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.generators import (
    CASES,
    CODEBOOK_SIZE,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    make_quantizer,
    make_vocabulary,
    random_codes,
    shared_generator,
)
from tokenizer.scales import image_and_clip
from tokenizer.settings import UserError
from training.config import ModelConfig
from training.generator import Generator, Known
from training.loop_steps import cache_rows, loop_steps
from training.partial import input_features

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
every_case = pytest.mark.parametrize(("variant", "kind", "block"), CASES, ids=str)
BY_NAME = {variant.name: variant for variant in VARIANTS}


@every_case
@torch.no_grad()
def test_rows_fed_step_by_step_with_a_cache_give_the_logits_of_one_pass(
    variant: Variant, kind: str, block: str
) -> None:
    generator = shared_generator(variant, kind, block)
    codes, prompts = random_codes(variant.schedule), encoded(kind)
    known = known_of(generator, codes)
    whole = generator.by_cell(known, prompts, variant.schedule)
    layout = generator.layout_for(variant.schedule)
    steps = loop_steps(layout, codes.device)
    condition = generator.condition(prompts)
    for is_static in (False, True):
        rows = cache_rows(steps) + 3 * is_static
        cache = generator.transformer.new_cache(len(codes), rows, is_static)
        carried: list[Tensor] = []
        for step in steps:
            hidden = generator.hidden(step.rows, step.seen, condition, known, cache)
            if carried:
                hidden = [torch.cat(both, dim=1) for both in zip(hidden, carried)]
            found = generator.logits(hidden, step.sources)
            carried = [] if step.carried is None else [each[:, step.carried] for each in hidden]
            cells = known.sequence[:, step.places][..., None].expand_as(found)
            torch.testing.assert_close(found, whole.gather(1, cells), atol=1e-4, rtol=1e-4)
        assert int(cache.length) == layout.num_context


@every_variant
@torch.no_grad()
def test_changing_a_code_changes_no_logit_up_to_its_own_step(variant: Variant) -> None:
    generator = shared_generator(variant, "text")
    codes, prompts = random_codes(variant.schedule), encoded("text")
    known = known_of(generator, codes)
    order = generator.layout_for(variant.schedule).order
    step_of = torch.empty_like(codes)
    step_of.scatter_(1, known.sequence, torch.from_numpy(order.step).expand_as(codes))
    before = generator.by_cell(known, prompts, variant.schedule)
    changes_later = 0
    for place in range(variant.schedule.num_tokens):
        cells = known.sequence[:, place : place + 1]
        changed = codes.scatter(1, cells, (codes.gather(1, cells) + 1) % CODEBOOK_SIZE)
        again = replace(known, codes=changed)
        if known.features is not None:
            again.features = input_features(
                make_quantizer(), changed, variant.schedule, generator.num_features
            )
        moved = (generator.by_cell(again, prompts, variant.schedule) - before).abs().amax(
            dim=2
        ) > 1e-5
        assert not moved[step_of <= order.step[place]].any()
        changes_later += int(moved.any())
    # Only the last step's codes are seen by nothing.
    assert changes_later == variant.schedule.num_tokens - order.sizes[-1]


@every_variant
@torch.no_grad()
def test_padding_of_a_caption_changes_nothing(variant: Variant) -> None:
    generator, prompts = make_generator(variant, "text"), encoded("text")
    known = known_of(generator, random_codes(variant.schedule))
    before = generator.by_cell(known, prompts, variant.schedule)
    generator.condition.pieces.weight[0] += 100.0  # what padding is looked up as
    generator.condition.pooled.weight[0] += 100.0
    after = generator.by_cell(known, prompts, variant.schedule)
    unaffected = ~(prompts == 0).any(dim=1)
    assert unaffected.any()
    assert torch.equal(before[unaffected], after[unaffected])


@pytest.mark.parametrize(
    ("variant", "kind", "block"), [each for each in CASES if each[1] != "none"], ids=str
)
@torch.no_grad()
def test_the_condition_matters(variant: Variant, kind: str, block: str) -> None:
    generator, prompts = shared_generator(variant, kind, block), encoded(kind)
    known = known_of(generator, random_codes(variant.schedule))
    with_prompt = generator.by_cell(known, prompts, variant.schedule)
    without = generator.by_cell(known, torch.full_like(prompts, -1), variant.schedule)
    assert not torch.allclose(with_prompt[0], without[0])
    assert torch.allclose(with_prompt[1], without[1])


@pytest.mark.parametrize("block", ["default", "rope"])
@pytest.mark.parametrize(
    "name", ["next_scale", "raster", "raster-pyramid", "par", "nar", "nar-frames", "arpg"]
)
@torch.no_grad()
def test_the_images_of_a_video_generator_are_made_by_the_same_weights(
    name: str, block: str
) -> None:
    variant = BY_NAME[name]
    generator, prompts = shared_generator(variant, "text", block), encoded("text")
    codes = random_codes(variant.schedule)
    sizes = [(2, 4)] if variant.schedule.grid else [1, 2]
    image = image_and_clip(1, sizes)
    order = generator.layout_for(image).order
    features = None
    if generator.num_features:
        features = input_features(
            make_quantizer(), codes, variant.schedule, generator.num_features
        )[:, : image.num_tokens]
    known = Known(torch.from_numpy(order.sequence)[None], codes[:, : image.num_tokens], features)
    found = generator.by_cell(known, prompts, image)
    assert found.shape == (3, image.num_tokens, CODEBOOK_SIZE)
    # In these frame 0 comes first in a video.
    if variant.method.frame_causal or variant.method.name in ("next_scale", "raster", "par"):
        video = generator.by_cell(known_of(generator, codes), prompts, variant.schedule)
        torch.testing.assert_close(found, video[:, : image.num_tokens], atol=1e-5, rtol=1e-5)


def test_a_schedule_that_is_no_beginning_of_the_generators_is_refused() -> None:
    generator = shared_generator(BY_NAME["raster-pyramid"], "none")
    with pytest.raises(UserError, match="is not the beginning"):
        generator.layout_for(image_and_clip(3, (1, 3)))


def test_a_number_of_blocks_is_needed_for_each_further_head() -> None:
    variant = BY_NAME["nar"]
    config = ModelConfig(width=16, depth=1, heads=2, head_blocks=(1,))
    with pytest.raises(UserError, match="3 heads need a number"):
        Generator(config, variant.method, variant.schedule, make_vocabulary("none"), 16, 4)


def test_queries_that_have_a_stack_of_their_own_need_blocks_for_it() -> None:
    variant = BY_NAME["arpg"]
    for config in (
        ModelConfig(width=16, depth=1, heads=2),
        ModelConfig(width=16, depth=2, heads=2, second_stack=0),
    ):
        with pytest.raises(UserError, match=r"model.second_stack \(0 of . blocks\)"):
            Generator(config, variant.method, variant.schedule, make_vocabulary("none"), 16, 4)
