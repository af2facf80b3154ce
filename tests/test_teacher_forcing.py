"""Bits of clips under teacher forcing: those of the training loss, and known where nothing is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.shards import open_dataset
from tests.generators import (
    CODEBOOK_SIZE,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_generator,
    make_quantizer,
    random_codes,
)
from tests.test_trainer import generator_run
from tokenizer.settings import UserError
from training.config import ConditionConfig, DataConfig, GeneratorRun
from training.draws import numpy_generator
from training.launch.local import launch
from training.method_config import MethodConfig
from training.run import OpenedRun, open_run
from training.tasks.generator import GeneratorTask
from training.tasks.task import Moment
from training.teacher_forcing import bits_of, code_logits, code_losses
from training.vocabulary import Vocabulary

BUCKET = "t5_h16_w16"


@pytest.fixture(scope="module", params=["next_scale", "raster", "nar", "arpg"])
def trained(
    request: pytest.FixtureRequest,
    code_shards: Path,
    grid_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[OpenedRun, GeneratorRun]:
    """Trained for a step, on clips of one shape, always with their classes."""
    out = tmp_path_factory.mktemp("bits") / request.param
    data = code_shards if request.param == "next_scale" else grid_shards
    settings = replace(
        generator_run(data, out, 1),
        method=MethodConfig(name=request.param),
        data=DataConfig(path=str(data), buckets=(BUCKET,)),
        condition=ConditionConfig(kind="class", dropout=0.0),
    )
    launch(settings)
    return open_run(out), settings


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
@torch.no_grad()
def test_a_model_that_knows_nothing_needs_all_bits_of_its_codebook(variant: Variant) -> None:
    generator = make_generator(variant, "class")
    for parameter in generator.heads.parameters():
        parameter.zero_()
    codes = random_codes(variant.schedule)
    sequence = known_of(generator, codes).sequence
    logits = code_logits(
        generator, make_quantizer(), codes, encoded("class"), sequence, variant.schedule
    )
    loss = code_losses(logits, codes, sequence)
    assert float(loss.sum()) / math.log(2) == pytest.approx(
        codes.numel() * math.log2(CODEBOOK_SIZE)
    )


def test_bits_of_clips_are_the_loss_of_a_batch_of_them(
    trained: tuple[OpenedRun, GeneratorRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = trained
    trainer = replace(settings.trainer, global_batch_size=20)  # all there are
    task = GeneratorTask(replace(settings, trainer=trainer), "cpu")
    task.generator.load_state_dict(run.generator.state_dict())
    task.generator.eval()
    batch = task.loader.batch(0)
    samples = open_dataset(settings.data.path or "").samples("train", BUCKET)
    bits = bits_of(run, samples)
    assert (bits.num_clips, bits.num_left_out) == (20, 0)
    num_codes = batch.arrays.shape[1]
    assert bits.per_clip == pytest.approx(bits.per_code * num_codes)
    order = task.generator.layout_for(run.schedule(BUCKET)).order
    if order.shuffled:  # a step draws other orders: those of the clips' numbers instead
        rows = samples.gather(range(20)).tolist()
        numbers = [rows.index(each) for each in batch.arrays.tolist()]
        drawn = [order.drawn(numpy_generator(0, "bits", number)) for number in numbers]
        sequence = torch.from_numpy(np.stack(drawn))
        monkeypatch.setattr(GeneratorTask, "_sequence", lambda *_: sequence)
    loss = float(task.losses(batch, Moment(0, 0.0)).loss.detach())
    assert bits.per_clip == pytest.approx(loss / 20 / math.log(2), rel=1e-5)


def test_bits_are_the_same_each_time_and_of_clips_evenly_apart(
    trained: tuple[OpenedRun, GeneratorRun],
) -> None:
    run, settings = trained
    samples = open_dataset(settings.data.path or "").samples("train", BUCKET)
    assert bits_of(run, samples, 7) == bits_of(run, samples, 7)
    assert bits_of(run, samples, 7).num_clips == 7
    assert bits_of(run, samples, 7) != bits_of(run, samples, 8)


def test_clips_of_unknown_classes_are_left_out_and_counted(
    trained: tuple[OpenedRun, GeneratorRun],
) -> None:
    run, settings = trained
    samples = open_dataset(settings.data.path or "").samples("train", BUCKET)
    knows_one = replace(run, vocabulary=Vocabulary("class", names=("0",), length=1))
    bits = bits_of(knows_one, samples)
    assert (bits.num_clips, bits.num_left_out) == (7, 13)
    knows_none = replace(run, vocabulary=Vocabulary("class", names=("zebra",), length=1))
    with pytest.raises(UserError, match="none of the 20 clips has a prompt that this run takes"):
        bits_of(knows_none, samples)


def test_codes_that_the_run_cannot_have_are_refused(
    trained: tuple[OpenedRun, GeneratorRun],
) -> None:
    run, settings = trained
    samples = open_dataset(settings.data.path or "").samples("train", BUCKET)
    run.generator.codebook_size = 3
    try:
        with pytest.raises(UserError, match=r"must lie in \[0, 3\): they are another tokenizer's"):
            bits_of(run, samples)
    finally:
        run.generator.codebook_size = 16
