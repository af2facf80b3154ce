"""The training loop: exact continuation, the same batches for any number of ranks, clear errors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.shards import Loader
from tests.checkpoints import checkpoint_tensors
from tests.generators import BLOCKS, VARIANTS, make_generator
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from training.checkpoint import latest_checkpoint
from training.config import (
    BlockConfig,
    ConditionConfig,
    DataConfig,
    GeneratorRun,
    MethodConfig,
    ModelConfig,
    SampleConfig,
    TokenizerRun,
)
from training.data import open_loader, open_sources
from training.launch import local
from training.loop_config import OptimizerConfig, ScheduleConfig, TrainerConfig
from training.methods import METHODS
from training.metrics import read_metrics
from training.muon import orthogonalized
from training.run import open_run
from training.samples import default_prompts, generate
from training.schedule import learning_rate_factor
from training.tasks.generator import GeneratorTask, is_matrix
from training.vocabulary import build_vocabulary

BUCKETS = ("t5_h16_w16", "t1_h16_w16")
TINY = TokenizerConfig(
    autoencoder=AutoencoderConfig(
        patch=8, temporal_patch=4, spatial_stride=8, temporal_stride=4, channels=(8,)
    ),
    quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=1),
)


def generator_run(data: Path, out: Path, num_steps: int = 6, **changes: Any) -> GeneratorRun:
    settings: dict[str, Any] = {
        "out": str(out),
        "data": DataConfig(path=str(data)),
        "model": ModelConfig(width=16, depth=2, heads=2, block=BlockConfig(dropout=0.1)),
        "trainer": TrainerConfig(
            num_steps=num_steps,
            global_batch_size=6,
            device="cpu",
            log_every=1,
            checkpoint_every=2,
            tensorboard=False,
        ),
    }
    return GeneratorRun(**(settings | changes))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["next_scale", "raster", "par", "nar", "arpg"])
def test_matrices_of_all_blocks_are_trained_as_matrices(name: str, block: str) -> None:
    """Those of NAR's heads, of ARPG's second stack and of any modulation too, and nothing else."""
    (variant,) = (each for each in VARIANTS if each.name == name)
    module = make_generator(variant, "class", BLOCKS[block])
    chosen = {key for key, each in module.named_parameters() if is_matrix(key, each)}
    assert chosen == {
        f"transformer.{key}.weight"
        for key, each in module.transformer.named_modules()
        if isinstance(each, nn.Linear)
    }


def tokenizer_run(data: Path, out: Path, num_steps: int = 6) -> TokenizerRun:
    return TokenizerRun(
        out=str(out),
        result=str(out / "tokenizer"),
        data=DataConfig(path=str(data), buckets=BUCKETS),
        tokenizer=TINY,
        optimizer=OptimizerConfig(matrices="adamw"),
        trainer=generator_run(data, out, num_steps).trainer,
    )


@pytest.mark.slow
@pytest.mark.parametrize("make_run", [generator_run, tokenizer_run])
def test_a_run_that_is_killed_and_started_again_ends_where_the_undisturbed_one_does(
    make_run: Any,
    code_shards: Path,
    pixel_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = code_shards if make_run is generator_run else pixel_shards
    whole = local.launch(make_run(data, tmp_path / "whole"))
    killed = make_run(data, tmp_path / "killed")
    with monkeypatch.context() as patch:
        real_batch = Loader.batch

        def dies_at_step_5(self: Loader, step: int) -> Any:
            if step == 5:
                raise KeyboardInterrupt
            return real_batch(self, step)

        patch.setattr(Loader, "batch", dies_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            local.launch(killed)
    assert latest_checkpoint(tmp_path / "killed").name == "step_00000004"  # type: ignore[union-attr]
    continued = local.launch(killed)
    expected, found = checkpoint_tensors(whole.checkpoint), checkpoint_tensors(continued.checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_the_trainers_batches_are_those_of_its_settings(code_shards: Path) -> None:
    data = DataConfig(path=str(code_shards), buckets=BUCKETS)
    trainer = TrainerConfig(global_batch_size=7, seed=3)
    _, sources = open_sources(data)
    buckets = set()
    for step in range(40):
        whole = open_loader(sources, data, trainer).batch(step)
        buckets.add(whole.bucket.name)
        parts = [open_loader(sources, data, trainer, rank, 3).batch(step) for rank in range(3)]
        assert np.array_equal(np.concatenate([each.arrays for each in parts]), whole.arrays)
    assert buckets == set(BUCKETS)
    with pytest.raises(
        UserError, match=r"the global batch of bucket t5_h16_w16 \(7\) must be at least one sample"
    ):
        open_loader(sources, data, trainer, 0, 8)


@pytest.mark.slow
def test_a_mixture_is_trained_on_by_weight_and_belongs_to_the_run(
    code_shards: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(code_shards, tmp_path / "other")
    mixed = DataConfig(path=str(code_shards), mixture={str(other): 0.5}, buckets=BUCKETS)
    _, sources = open_sources(mixed)
    batches = open_loader(sources, mixed, TrainerConfig(global_batch_size=6))
    source = np.concatenate([batches.global_batch(step)[1] for step in range(600)])
    assert abs((source == 1).mean() - 1 / 3) < 0.02
    run = replace(generator_run(code_shards, tmp_path / "run", 2), data=mixed)
    local.launch(run)
    longer = replace(run, trainer=replace(run.trainer, num_steps=4))
    assert local.launch(longer).step == 4
    with pytest.raises(UserError, match="made with another data_order"):
        local.launch(replace(longer, data=replace(mixed, mixture={str(other): 0.7})))


def test_a_mixture_of_different_datasets_is_refused(code_shards: Path, pixel_shards: Path) -> None:
    with pytest.raises(UserError, match=r"data\.mixture: .* holds frames of tokenizer None"):
        open_sources(DataConfig(path=str(code_shards), mixture={str(pixel_shards): 1.0}))


@pytest.mark.parametrize("kind", ["none", "class", "text"])
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_run_can_be_opened_and_sampled(
    method: str, kind: str, code_shards: Path, grid_shards: Path, tmp_path: Path
) -> None:
    run = generator_run(
        code_shards if method == "next_scale" else grid_shards,
        tmp_path / "run",
        num_steps=2,
        method=MethodConfig(name=method),  # type: ignore[arg-type]
        condition=ConditionConfig(kind=kind),  # type: ignore[arg-type]
    )
    local.launch(run)
    opened = open_run(tmp_path / "run")
    prompts: list[str | None] = {"none": [None], "class": ["1"], "text": ["a red seven"]}[kind]  # type: ignore[assignment]
    scale = 1.0 if kind == "none" else 2.0
    settings = SampleConfig(guidance=replace(SampleConfig().guidance, scale=scale))
    generated = generate(opened, prompts, settings)
    assert generated.frames.shape == (1, 5, 16, 16, 3)
    assert (
        generated.num_steps
        == opened.generator.layout_for(opened.schedule("t5_h16_w16"), False).order.num_steps
    )


def test_default_prompts_use_the_words_of_the_training_data_evenly(
    code_shards: Path, tmp_path: Path
) -> None:
    local.launch(generator_run(code_shards, tmp_path / "run", num_steps=1))
    opened = open_run(tmp_path / "run")
    captions = [f"a {color} {digit}" for color in ("blue", "red") for digit in range(4)]
    opened = replace(opened, vocabulary=build_vocabulary("text", captions, max_pieces=8))
    chosen = default_prompts(opened, limit=4)
    assert {str(each)[-1] for each in chosen} == set("0123")
    assert sum("red" in str(each) for each in chosen) == 2
    assert len(default_prompts(opened, limit=99)) == len(captions)


def test_the_tokenizer_of_a_run_is_written_where_it_was_asked_for(
    pixel_shards: Path, tmp_path: Path
) -> None:
    local.launch(tokenizer_run(pixel_shards, tmp_path / "run", num_steps=3))
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert tokenizer.encode(torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8)).shape == (1, 10)


@pytest.mark.slow
def test_training_lowers_the_loss(code_shards: Path, tmp_path: Path) -> None:
    run = generator_run(code_shards, tmp_path / "run", num_steps=40)
    local.launch(replace(run, schedule=ScheduleConfig(warmup_steps=0)))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert losses[0] == pytest.approx(np.log(16), abs=0.05)
    assert np.mean(losses[-10:]) < losses[0] - 0.1


def test_matrices_are_orthogonalised_together_as_they_are_alone() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((8, 24), (24, 8), (8, 8), (5, 9))]
    for matrix, found in zip(matrices, orthogonalized(matrices, steps=5)):
        assert found.shape == matrix.shape
        torch.testing.assert_close(found, slowly_orthogonalized(matrix, 5), atol=1e-3, rtol=1e-3)
        singular = torch.linalg.svdvals(found)
        assert singular.min() > 0.4
        assert singular.max() < 1.3


def slowly_orthogonalized(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    x = matrix.double() / (matrix.double().norm() * 1.02**0.5)
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x.float()


def test_learning_rate_schedules() -> None:
    def factors(**settings: Any) -> list[float]:
        config = ScheduleConfig(warmup_steps=2, **settings)
        return [round(learning_rate_factor(config, step, 10), 3) for step in range(10)]

    assert factors(kind="constant")[:4] == [0.333, 0.667, 1, 1]
    assert factors(kind="linear")[2:] == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert factors(kind="wsd", stable_share=0.5)[2:] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(kind="cosine", final_ratio=0.1)[6] == 0.55


def test_a_folder_with_another_run_is_refused(code_shards: Path, tmp_path: Path) -> None:
    run = generator_run(code_shards, tmp_path / "run", num_steps=2)
    local.launch(run)
    with pytest.raises(UserError, match=r"made with another model\.width \(\d+\) than this .*32"):
        local.launch(replace(run, model=ModelConfig(width=32, depth=2, heads=2)))
    with pytest.raises(UserError, match="made with another method"):
        local.launch(replace(run, method=MethodConfig(name="raster")))


def test_shards_of_another_tokenizer_are_refused(code_shards: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(code_shards, data)
    save_tokenizer(Tokenizer(TINY), data / "tokenizer")
    with pytest.raises(UserError, match="shards of another tokenizer"):
        local.launch(generator_run(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_is_refused(code_shards: Path, tmp_path: Path) -> None:
    small = generator_run(code_shards, tmp_path / "small", num_steps=2)
    wide = replace(small, out=str(tmp_path / "wide"), model=ModelConfig(width=32, depth=2, heads=2))
    local.launch(small)
    local.launch(wide)
    with pytest.raises(UserError, match="a checkpoint of another model"):
        open_run(tmp_path / "small", checkpoint=latest_checkpoint(tmp_path / "wide"))


def test_pixel_shards_are_refused_for_a_generator_and_codes_for_a_tokenizer(
    code_shards: Path, pixel_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a generator learns codes"):
        GeneratorTask(generator_run(pixel_shards, tmp_path), "cpu")
    with pytest.raises(UserError, match="a tokenizer learns from pixel shards"):
        local.launch(tokenizer_run(code_shards, tmp_path))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
        {"beta1": 1.5},
        {"momentum": 1.0},
        {"newton_schulz_steps": 0},
    ],
)
def test_an_optimizer_that_would_climb_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
    with pytest.raises(ValueError, match="final_ratio"):
        ScheduleConfig(final_ratio=-1.0)
