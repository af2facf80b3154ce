"""The tokenizer as the loop's task: critics, averaged weights, previews, continuing, two ranks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed

from pipeline.shards import DamagedSample, Loader, open_dataset
from tests.checkpoints import checkpoint_tensors
from tests.ranks import Ranks
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer
from tokenizer.latents import read_statistics
from tokenizer.learner import Learner
from tokenizer.loss_config import DiscriminatorConfig, LossConfig
from tokenizer.losses import LossOutput
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from training.config import BeginConfig, DataConfig, TokenizerRun
from training.launch import local
from training.launch.job import run_job
from training.loop_config import DiscriminatorOptimizerConfig, OptimizerConfig, TrainerConfig
from training.metrics import read_metrics
from training.parallel import whole
from training.reconstructions import side_by_side
from training.tasks.tokenizer import TokenizerTask

BUCKETS = ("t5_h16_w16", "t1_h16_w16")
TINY = TokenizerConfig(
    autoencoder=AutoencoderConfig(
        patch=8, temporal_patch=4, spatial_stride=8, temporal_stride=4, channels=(8,)
    ),
    quantizer=QuantizerConfig(
        codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=1, restart_share=0.0
    ),
    loss=LossConfig(
        ms_ssim=0.2,
        discriminator=DiscriminatorConfig(
            weight=0.3,
            kind="both",
            channels=8,
            layers=2,
            balance="adaptive",
            start_share=0.3,
            ramp_share=0.3,
            lecam=0.1,
        ),
    ),
)


def everything(data: Path, out: Path, num_steps: int = 6, **changes: Any) -> TokenizerRun:
    """A run with critics, averaged weights, several shapes and both optimizers."""
    trainer = {
        "num_steps": num_steps,
        "global_batch_size": 6,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 2,
        "preview_every": 0,
        "tensorboard": False,
        "ema_decay": 0.9,
    }
    return TokenizerRun(
        out=str(out),
        result=str(out / "tokenizer"),
        data=DataConfig(path=str(data), buckets=BUCKETS),
        tokenizer=TINY,
        discriminator_optimizer=DiscriminatorOptimizerConfig(learning_rate=1e-3),
        trainer=TrainerConfig(**(trainer | changes)),
    )


def test_damaged_clips_are_left_out_of_beginnings_and_previews_too(
    pixel_shards: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pixel_shards, tmp_path / "data")
    shard = open_dataset(data).samples("train", BUCKETS[0]).shards[0]
    path = min((data / "parts").glob(f"train-{BUCKETS[0]}-*.tar"))
    content = bytearray(path.read_bytes())
    content[int(shard.sidecar.places["offset"][2, 0]) + 129] ^= 4
    path.write_bytes(content)
    run = everything(data, tmp_path / "run", num_steps=1, preview_every=1)
    with pytest.raises(DamagedSample):
        local.launch(run)
    run = replace(run, data=replace(run.data, damaged="skip"))
    assert local.launch(run).step == 1


@pytest.mark.slow
def test_a_killed_run_with_everything_on_ends_where_the_undisturbed_one_does(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = local.launch(everything(pixel_shards, tmp_path / "whole"))
    killed = everything(pixel_shards, tmp_path / "killed")
    with monkeypatch.context() as patch:
        real_batch = Loader.batch

        def dies_at_step_5(self: Loader, step: int) -> Any:
            if step == 5:
                raise KeyboardInterrupt
            return real_batch(self, step)

        patch.setattr(Loader, "batch", dies_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            local.launch(killed)
    continued = local.launch(killed)
    expected, found = checkpoint_tensors(whole.checkpoint), checkpoint_tensors(continued.checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for kind in ("discriminator.critics", "codebook", "exp_avg", "momentum", "real_mean"):
        assert any(kind in key for key in expected)
    fingerprints = {
        load_tokenizer(tmp_path / name / "tokenizer").fingerprint for name in ("whole", "killed")
    }
    assert len(fingerprints) == 1
    measured = {read_statistics(tmp_path / name / "tokenizer") for name in ("whole", "killed")}
    assert len(measured) == 1


def test_images_and_clips_take_turns_and_the_critics_come_in_late(
    pixel_shards: Path, tmp_path: Path
) -> None:
    local.launch(everything(pixel_shards, tmp_path, num_steps=10))
    lines = read_metrics(tmp_path)
    assert {"temporal" in line for line in lines} == {True, False}
    assert ["critic_hinge" in line for line in lines] == [False] * 3 + [True] * 7
    weights = [line["deception_weight"] for line in lines[3:]]
    assert weights[0] == 0
    assert all(each > 0 for each in weights[1:])
    assert lines[0]["discriminator_gradient_norm"] == 0
    assert lines[5]["discriminator_gradient_norm"] > 0


@pytest.mark.slow
def test_only_its_own_part_changes_when_the_other_has_no_learning_rate(
    pixel_shards: Path, tmp_path: Path
) -> None:
    still = 1e-60
    for name, changes in {
        "tokenizer": {
            "optimizer": OptimizerConfig(learning_rate=still, matrix_learning_rate=still)
        },
        "discriminator": {
            "discriminator_optimizer": DiscriminatorOptimizerConfig(
                learning_rate=still, matrix_learning_rate=still
            )
        },
    }.items():
        run = replace(everything(pixel_shards, tmp_path / name), **changes)  # type: ignore[arg-type]
        task = TokenizerTask(run, "cpu")
        task.begin()
        before = {key: each.clone() for key, each in task.module.named_parameters()}
        checkpoint = local.launch(run).checkpoint
        after = checkpoint_tensors(checkpoint, "model/")
        changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == {"tokenizer", "discriminator"} - {name}


def test_the_result_has_the_averaged_weights(pixel_shards: Path, tmp_path: Path) -> None:
    run = everything(pixel_shards, tmp_path)
    trained = local.launch(run)
    average = checkpoint_tensors(trained.checkpoint, "average/tokenizer.")
    raw = checkpoint_tensors(trained.checkpoint, "model/")
    result = load_tokenizer(tmp_path / "tokenizer")
    differs = 0
    for name, value in result.named_parameters():
        assert torch.equal(value, average[name])
        differs += not torch.equal(value, raw[f"tokenizer.{name}"])
    assert differs > 0
    for name, value in result.named_buffers():
        if f"tokenizer.{name}" in raw and name.endswith("weight"):
            assert torch.equal(value, raw[f"tokenizer.{name}"])


@pytest.mark.slow
def test_previews_show_pictures_and_health_and_change_nothing(
    pixel_shards: Path, tmp_path: Path
) -> None:
    plain = local.launch(everything(pixel_shards, tmp_path / "plain"))
    shown = everything(pixel_shards, tmp_path / "shown", preview_every=4, tensorboard=True)
    trained = local.launch(replace(shown, trainer=replace(shown.trainer, log_every=100)))
    expected, found = checkpoint_tensors(plain.checkpoint), checkpoint_tensors(trained.checkpoint)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    lines = read_metrics(tmp_path / "shown")
    assert [line["step"] for line in lines] == [4, 6]
    for what in ("usage", "perplexity", "unused", "left"):
        names = [name for name in lines[0] if name.startswith(f"{what}/")]
        assert len(names) == 2 * 2 + 2
    assert lines[-1]["psnr/t5_h16_w16"] > 5
    assert pictures_of(tmp_path / "shown" / "tensorboard") == {
        f"reconstructions/{name}": [4, 6] for name in BUCKETS
    }


def pictures_of(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [each.step for each in events.Images(name)] for name in events.Tags()["images"]}


def test_a_picture_has_sources_above_reconstructions() -> None:
    frames = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1, 1, 1) * np.ones(
        (1, 1, 6, 4, 3), dtype=np.uint8
    )
    picture = side_by_side(frames, frames + 100)
    assert picture.shape == (6 + 4 + 6, 2 * 3 * 4 + 4, 3)
    columns = [0, 4, 8, 16, 20, 24]
    assert picture[0, columns, 0].tolist() == [0, 2, 4, 5, 7, 9]
    assert picture[10, columns, 0].tolist() == [100, 102, 104, 105, 107, 109]
    assert side_by_side(frames[:, :1], frames[:, :1]).shape == (16, 2 * 4 + 4, 3)


@pytest.mark.slow
def test_training_goes_on_from_a_finished_tokenizer(pixel_shards: Path, tmp_path: Path) -> None:
    first = everything(pixel_shards, tmp_path / "first")
    local.launch(first)
    folder = first.result
    again = replace(
        everything(pixel_shards, tmp_path / "again"), begin=BeginConfig(folder=folder, clips=0)
    )
    task = TokenizerTask(again, "cpu")
    task.begin()
    assert task.tokenizer.fingerprint == load_tokenizer(str(folder)).fingerprint
    assert bool(task.tokenizer.quantizer.codebook.is_initialised)
    local.launch(again)
    other = replace(TINY, quantizer=replace(TINY.quantizer, codebook_size=32))
    with pytest.raises(
        UserError, match=r"begin.folder: .* tokenizer.quantizer.codebook_size \(16\)"
    ):
        TokenizerTask(replace(again, tokenizer=other), "cpu").begin()


def test_a_loss_that_is_no_number_names_the_step_and_the_clips(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.forward

    def fails_at_the_end(self: Learner, frames: Any, progress: float, generator: Any) -> LossOutput:
        output = real(self, frames, progress, generator)
        return LossOutput(output.loss * (float("nan") if progress > 0.6 else 1), output.terms)

    monkeypatch.setattr(Learner, "forward", fails_at_the_end)
    with pytest.raises(
        UserError, match="step 5: the loss is not a number, with clips 0 of the batch"
    ):
        local.launch(everything(pixel_shards, tmp_path))
    state = checkpoint_tensors(tmp_path / "checkpoints" / "step_00000004", "model/")
    assert all(torch.isfinite(each).all() for each in state.values())


def test_losses_that_the_frames_are_too_small_for_are_refused_at_the_door(
    pixel_shards: Path, tmp_path: Path
) -> None:
    critics = replace(TINY.loss.discriminator, layers=5)
    run = everything(pixel_shards, tmp_path)
    config = replace(TINY, loss=replace(TINY.loss, discriminator=critics))
    with pytest.raises(UserError, match=r"loss\.discriminator: frames of 16 x 16 are too small"):
        TokenizerTask(replace(run, tokenizer=config), "cpu")
    config = replace(TINY, loss=LossConfig(lpips=1.0))
    with pytest.raises(UserError, match=r"lpips\.vgg and lpips\.vgg_sha256 are required"):
        TokenizerTask(replace(run, tokenizer=config), "cpu")


@pytest.mark.slow
def test_bfloat16_trains_too(pixel_shards: Path, tmp_path: Path) -> None:
    local.launch(everything(pixel_shards, tmp_path / "half", precision="bfloat16"))
    local.launch(everything(pixel_shards, tmp_path / "full"))
    half, full = (read_metrics(tmp_path / name) for name in ("half", "full"))
    assert half[0]["loss"] != full[0]["loss"]
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    state = checkpoint_tensors(tmp_path / "half" / "checkpoints" / "step_00000006", "model/")
    assert all(each.dtype != torch.bfloat16 for each in state.values())


@pytest.mark.multiprocess
def test_two_ranks_train_as_one_process_does(
    pixel_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = everything(pixel_shards, tmp_path / "one", num_steps=5)
    run = replace(run, trainer=replace(run.trainer, global_batch_size=5))
    one = local.launch(run)
    two = replace(run, out=str(tmp_path / "two"), result=str(tmp_path / "two" / "tokenizer"))
    ranks = two_ranks.run(_train_as_rank, two)
    expected = checkpoint_tensors(one.checkpoint)
    found = checkpoint_tensors(tmp_path / "two" / "checkpoints" / one.checkpoint.name)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)
    measured = [read_statistics(str(each.result)) for each in (run, two)]
    assert measured[0].num_values == measured[1].num_values
    assert measured[1].std == pytest.approx(measured[0].std, rel=1e-3)
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])


def _train_as_rank(run: TokenizerRun) -> dict[str, torch.Tensor]:
    """The module's state after the run, in one piece."""
    tasks = []
    real = TokenizerTask.begin

    def remember(self: TokenizerTask) -> None:
        tasks.append(self)
        real(self)

    with patch.object(TokenizerTask, "begin", remember):
        run_job(run)
    return {name: whole(each.detach()) for name, each in tasks[0].module.state_dict().items()}
