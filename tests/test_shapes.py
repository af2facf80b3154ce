"""One generator for clips of several shapes: each is as if the generator were made for it alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import write_random_shards
from tests.generators import (
    BLOCKS,
    PYRAMID,
    Variant,
    encoded,
    known_of,
    make_generator,
    random_codes,
)
from tests.test_trainer import generator_run
from tokenizer.scales import Schedule, image_and_clip, single_grid
from tokenizer.settings import UserError
from training.block_config import BlockConfig
from training.config import (
    ConditionConfig,
    GeneratorRun,
    GuidanceConfig,
    ModelConfig,
    SampleConfig,
)
from training.generator import Generator
from training.launch import local
from training.method_config import MethodConfig
from training.metrics import read_metrics
from training.parallel import Skeleton
from training.positions import schedule_for_all
from training.run import open_run
from training.sampler import sampling
from training.samples import generate
from training.tasks.generator import GeneratorTask
from training.teacher_forcing import bits_of

METHODS = {
    "raster": MethodConfig(name="raster"),
    "par": MethodConfig(name="par"),
    "nar": MethodConfig(name="nar"),
    "arpg": MethodConfig(name="arpg", num_steps=5),
}
OWN = image_and_clip(3, [(4, 4)])
INSIDE = {
    "shorter": image_and_clip(2, [(4, 4)]),
    "wide": single_grid(2, 2, 4),
    "tall": single_grid(3, 4, 2),
    "image": single_grid(1, 2, 4),
}
LARGER = {"wider": single_grid(2, 2, 6), "longer": image_and_clip(5, [(2, 2)])}
TABLE, ROPE = BLOCKS["default"], BLOCKS["rope"]
GUIDED = SampleConfig(guidance=GuidanceConfig(kind="constant", scale=2.0))

every_method = pytest.mark.parametrize("method", METHODS)
every_position = pytest.mark.parametrize("block", [TABLE, ROPE], ids=["table", "rope"])


def own_generator(method: str, block: BlockConfig) -> Generator:
    return make_generator(Variant(method, METHODS[method], OWN), "text", block)


def made_for(schedule: Schedule, generator: Generator) -> Generator:
    """A generator of this shape alone with the same weights: with a table those of its cells.

    Rotary images are of a video two frames long, in which they are the beginning.
    """
    block, own = generator.config.block, schedule
    if block.position == "rope" and schedule.num_latent_frames == 1:
        assert schedule.grid is not None
        own = image_and_clip(2, [schedule.grid[1:]])
    alone = make_generator(Variant("alone", generator.method, own), "text", block)
    state = generator.state_dict()
    if "positions.weight" in state:
        assert schedule.grid is not None
        cells = [(t * 4 + h) * 4 + w for t, h, w in np.ndindex(schedule.grid)]
        state["positions.weight"] = state["positions.weight"][cells]
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    return alone


def logits_of(generator: Generator, schedule: Schedule) -> Tensor:
    known = known_of(generator, random_codes(schedule), schedule=schedule)
    return generator.by_cell(known, encoded("text"), schedule)


@pytest.mark.parametrize("shape", [*INSIDE, *LARGER])
@every_position
@every_method
@torch.no_grad()
def test_clips_of_another_shape_are_those_of_a_generator_of_that_shape(
    method: str, block: BlockConfig, shape: str
) -> None:
    generator, schedule = own_generator(method, block), (INSIDE | LARGER)[shape]
    if block is TABLE and shape in LARGER:
        with pytest.raises(UserError, match=r"does not fit in 3 x 4 x 4, .*block.position rope"):
            generator.layout_for(schedule)
        return
    alone = made_for(schedule, generator)
    assert torch.equal(logits_of(generator, schedule), logits_of(alone, schedule))
    fast, slow, expected = (
        sampling(each, encoded("text"), schedule, GUIDED, range(3), cached=is_cached).codes()
        for each, is_cached in ((generator, True), (generator, False), (alone, True))
    )
    assert torch.equal(fast, slow)
    assert torch.equal(fast, expected)
    assert len(fast.unique()) > 2


@every_method
@torch.no_grad()
def test_cells_of_another_shape_stand_where_they_are(method: str) -> None:
    """Without its vectors of them a table would say something else."""
    generator, schedule = own_generator(method, TABLE), INSIDE["tall"]
    before = logits_of(generator, schedule)
    weight = generator.positions.weight  # type: ignore[union-attr]
    at = weight.view(3, 4, 4, -1)
    at[:, :, 2:] += 1.0  # columns that it does not have
    assert torch.equal(logits_of(generator, schedule), before)
    at[:, :, :2] += 1.0
    assert not torch.allclose(logits_of(generator, schedule), before)


@every_position
@every_method
def test_clips_of_several_shapes_in_one_sequence_are_those_of_separate_ones(
    method: str, block: BlockConfig
) -> None:
    generator = own_generator(method, block)
    schedules = [OWN, *INSIDE.values(), *(LARGER.values() if block is ROPE else ())]
    clips = [
        (known_of(generator, random_codes(each), schedule=each), encoded("text"), each)
        for each in schedules
    ]
    answers, gradients = [], []
    for logits in ([generator.by_cell(*each) for each in clips], generator.packed(clips)):
        generator.zero_grad(set_to_none=True)
        losses = [
            F.cross_entropy(each.flatten(0, 1), known.codes.flatten(), reduction="sum")
            for each, (known, _, _) in zip(logits, clips)
        ]
        torch.stack(losses).sum().backward()
        answers.append([each.detach() for each in logits])
        gradients.append({name: each.grad for name, each in generator.named_parameters()})
    for separate, packed in zip(*answers):
        torch.testing.assert_close(packed, separate, atol=1e-4, rtol=1e-4)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=3e-3, rtol=1e-3, msg=name)


@every_position
@torch.no_grad()
def test_copies_casts_and_skeletons_know_the_same_shapes(block: BlockConfig) -> None:
    generator, schedule = own_generator("arpg", block), INSIDE["wide"]
    expected = logits_of(generator, schedule)
    copied = copy.deepcopy(generator)
    filled = Skeleton(generator).filled(generator.state_dict())
    assert isinstance(filled, Generator)
    for each in (copied, filled, copied.double().float()):
        assert torch.equal(logits_of(each, schedule), expected)
    exact = logits_of(copied.double(), schedule)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), expected, atol=1e-4, rtol=1e-4)
    half = logits_of(copied.bfloat16(), schedule)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, logits_of(made_for(schedule, generator).bfloat16(), schedule))


def test_what_a_generator_has_not_learned_is_refused() -> None:
    pyramid = make_generator(Variant("pyramid", METHODS["raster"], PYRAMID), "none", ROPE)
    scales = Variant("scales", MethodConfig(name="next_scale"), OWN)
    for generator in (pyramid, make_generator(scales, "none", ROPE)):
        for schedule in (INSIDE["tall"], image_and_clip(3, (1, 3))):
            with pytest.raises(UserError, match=r"has learned its scales, .* is not the beginning"):
                generator.layout_for(schedule)
    for method, lacking in (
        (METHODS["nar"], "3 heads, not 2"),
        (replace(METHODS["nar"], frame_causal=True), "vectors of kind MASK"),
    ):
        images = make_generator(Variant("images", method, single_grid(1, 4, 4)), "none", ROPE)
        images.layout_for(single_grid(1, 2, 6))
        with pytest.raises(UserError, match=f"2 x 4 x 4 cells need {lacking}; .* for 1 x 4 x 4"):
            images.layout_for(INSIDE["shorter"])
    parts = make_generator(Variant("parts", METHODS["par"], single_grid(1, 2, 2)), "none", ROPE)
    with pytest.raises(UserError, match="need vectors of kind TRANSITION;"):
        parts.layout_for(OWN)


def test_images_and_videos_of_an_image_generator_turn_alike_in_every_frame() -> None:
    """It has no pairs for t: what it learned of h and w is as it was."""
    images = make_generator(
        Variant("images", METHODS["raster"], single_grid(1, 4, 4)), "text", ROPE
    )
    with torch.no_grad():
        known = known_of(images, random_codes(OWN), schedule=OWN)
        video = images(known, encoded("text"), OWN)[:, :16]
        codes = random_codes(OWN)[:, :16]
        image = images(known_of(images, codes), encoded("text"), images.schedule)
    torch.testing.assert_close(video, image, atol=1e-5, rtol=1e-5)


def test_the_schedule_of_a_generator_of_several_is_the_longest_or_holds_them_all() -> None:
    wide, tall, image = single_grid(2, 2, 4), single_grid(2, 4, 2), single_grid(1, 2, 2)
    assert schedule_for_all([wide, tall, image], "par", "rope") == wide
    assert schedule_for_all([wide, tall, image], "par", "table") == single_grid(2, 4, 4)
    assert schedule_for_all([OWN, wide, tall], "nar", "table") == OWN
    begun = [image_and_clip(3, [(4, 4)]), image_and_clip(1, [(4, 4)])]
    assert schedule_for_all(begun, "arpg", "table") == begun[0]
    for method in ("next_scale", "raster"):
        assert schedule_for_all([PYRAMID, image], method, "table") == PYRAMID


SHAPES = {
    "t1_h32_w32": (1, 32, 32),
    "t1_h16_w16": (1, 16, 16),
    "t5_h32_w16": (5, 32, 16),
    "t5_h16_w32": (5, 16, 32),
}


@pytest.fixture(scope="module")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of one scale in four shapes; of the videos neither holds the other."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    return write_random_shards(folder, "codes", scales=(4,), shapes=SHAPES)


def on_buckets(settings: GeneratorRun, names: Iterable[str]) -> GeneratorRun:
    return replace(settings, data=replace(settings.data, buckets=tuple(names)))


@pytest.mark.slow
@every_position
@every_method
def test_a_run_on_several_shapes_learns_and_makes_each_of_them(
    method: str, block: BlockConfig, mixed_shards: Path, tmp_path: Path
) -> None:
    settings = generator_run(
        mixed_shards,
        tmp_path,
        8,
        method=METHODS[method],
        model=ModelConfig(width=16, depth=2, heads=2, block=block),
        condition=ConditionConfig(kind="class"),
    )
    settings = on_buckets(settings, SHAPES)
    half = replace(settings, trainer=replace(settings.trainer, num_steps=4))
    local.launch(half)
    assert local.launch(settings).step == 8
    lines = list(read_metrics(tmp_path))
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(abs(line["loss"] - math.log(16)) < 0.5 for line in lines)
    run = open_run(tmp_path)
    whole = image_and_clip(2, [(2, 4)]) if block is ROPE else single_grid(2, 4, 4)
    assert run.generator.schedule == whole
    assert list(run.record.shapes) == ["t5_h16_w32", "t5_h32_w16", "t1_h32_w32", "t1_h16_w16"]
    task = GeneratorTask(on_buckets(settings, reversed(SHAPES)), "cpu")  # the order is no matter
    assert task.generator.schedule == whole
    assert {task.loader.batch(step).bucket.name for step in range(8)} == set(SHAPES)
    for name, shape in SHAPES.items():
        made = generate(run, ["1", "2"], replace(GUIDED, bucket=name))
        assert made.frames.shape == (2, *shape, 3)
        assert made.codes.shape == (2, run.schedule(name).num_tokens)
        assert abs(bits_of(run, task.dataset.samples("train", name)).per_code - 4) < 0.7
    record = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(record.replace(run.record.order, "0" * 64))
    with pytest.raises(UserError, match=f"the order {method} has changed"):
        open_run(tmp_path)


def test_buckets_of_a_pyramid_that_do_not_begin_alike_are_refused_at_the_start(
    tmp_path: Path,
) -> None:
    shapes = {"t5_h16_w16": (5, 16, 16), "t5_h16_w32": (5, 16, 32), "t1_h16_w32": (1, 16, 32)}
    data = write_random_shards(tmp_path / "data", "codes", shapes=shapes)
    settings = on_buckets(generator_run(data, tmp_path / "run"), shapes)
    with pytest.raises(UserError, match=r"^bucket t5_h16_w16: next_scale has learned") as refused:
        local.launch(settings)
    assert "data.buckets" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
    GeneratorTask(on_buckets(settings, ("t5_h16_w32", "t1_h16_w32")), "cpu")
