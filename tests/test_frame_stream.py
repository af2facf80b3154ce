"""Frames come while clips are generated, and are those of the whole clip."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from tests.generators import CODEBOOK_SIZE, VARIANTS, Variant, encoded, shared_generator
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule
from training.config import GuidanceConfig, SampleConfig
from training.draws import numpy_generator
from training.frame_stream import first_at, stream_frames
from training.given import Given
from training.sampler import Step, sampling

SETTINGS = SampleConfig(guidance=GuidanceConfig(scale=2.0))
CAUSAL = {"raster", "nar-frames", "arpg-frames"}
GRIDS = [variant for variant in VARIANTS if variant.schedule.grid is not None]
PYRAMIDS = [variant for variant in VARIANTS if variant.name in ("next_scale", "raster-pyramid")]


@cache
def make_tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(
            autoencoder=AutoencoderConfig(
                patch=8, temporal_patch=4, spatial_stride=8, temporal_stride=4, channels=(8,)
            ),
            quantizer=QuantizerConfig(codebook_size=CODEBOOK_SIZE, codebook_dim=4, num_phi=1),
        )
    )
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer.eval()


@pytest.mark.parametrize("variant", GRIDS + PYRAMIDS, ids=lambda each: each.name)
@torch.no_grad()
def test_streamed_frames_are_those_of_the_whole_clip(variant: Variant) -> None:
    tokenizer, generator = make_tokenizer(), shared_generator(variant, "class")
    arguments = (encoded("class"), variant.schedule, SETTINGS, range(3))
    codes = sampling(generator, *arguments, tokenizer.quantizer).codes()
    clip, steps = sampling(generator, *arguments, tokenizer.quantizer)
    frames = list(stream_frames(tokenizer, clip, steps))
    assert torch.equal(clip.codes, codes)
    assert len(frames) == variant.schedule.num_latent_frames
    assert torch.equal(torch.cat(frames, dim=1), tokenizer.decode(codes, variant.schedule))


@pytest.mark.parametrize("variant", GRIDS + PYRAMIDS, ids=lambda each: each.name)
def test_frames_come_as_soon_as_their_codes_are_there(variant: Variant) -> None:
    done: list[Step] = []

    def counted(steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            done.append(step)
            yield step

    tokenizer, generator = make_tokenizer(), shared_generator(variant, "class")
    clip, steps_of_clip = sampling(
        generator, encoded("class"), variant.schedule, SETTINGS, range(3), tokenizer.quantizer
    )
    frames = stream_frames(tokenizer, clip, counted(steps_of_clip))
    steps_at = [len(done) for _ in frames]
    order = generator.layout_for(variant.schedule, training=False).order
    step_of_cell = np.empty((3, variant.schedule.num_tokens), dtype=np.int64)
    for number, steps in enumerate(step_of_cell):  # each sample may have an order of its own
        steps[order.drawn(numpy_generator(SETTINGS.seed, "order", number))] = order.step
    last = [step_of_cell[:, cells].max() for cells in cells_of_frames(variant.schedule)]
    assert steps_at == np.maximum.accumulate(last).tolist()
    assert steps_at[0] <= first_at(order)
    if not order.shuffled:
        assert steps_at[0] == first_at(order)
    if variant.name in CAUSAL:
        assert steps_at[0] <= order.num_steps // 3 + 1


def test_orders_over_all_frames_have_none_before_the_end() -> None:
    orders = {each.name: shared_generator(each, "class").layout_for(each.schedule, False).order
              for each in GRIDS}  # fmt: skip
    at_once = {name for name, order in orders.items() if first_at(order) == order.num_steps}
    assert at_once == {"par-time", "arpg", "nar-image", "nar-image-3"}


def cells_of_frames(schedule: Schedule) -> list[np.ndarray]:
    """For each latent frame, the cells that it cannot be decoded without."""
    cells = np.arange(schedule.num_tokens)
    if schedule.grid is not None:
        return np.split(cells, schedule.num_latent_frames)
    first = sum(scale.num_tokens for scale in schedule.pyramids[0])
    return [cells[:first]] + [cells[first:]] * (schedule.num_latent_frames - 1)


def test_a_clip_all_of_whose_cells_are_given_streams_without_a_step() -> None:
    variant = next(each for each in GRIDS if each.name == "raster")
    tokenizer, generator = make_tokenizer(), shared_generator(variant, "class")
    codes = torch.arange(variant.schedule.num_tokens)[None] % CODEBOOK_SIZE
    given = Given(codes, np.ones(codes.shape[1], dtype=bool))
    clip, steps = sampling(
        generator, encoded("class"), variant.schedule, SETTINGS, range(3), given=given
    )
    frames = stream_frames(tokenizer, clip, steps, given)
    whole = tokenizer.decode(codes, variant.schedule)
    assert torch.equal(torch.cat(list(frames), dim=1), whole.expand(3, -1, -1, -1, -1))
