"""Launchers: the same run in one process, under torchrun and on Ray; each works alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import checkpoint_tensors
from tests.loops import run_on_rank
from tests.ranks import Ranks
from tokenizer.settings import UserError
from training.__main__ import main
from training.config import DataConfig, GeneratorRun, MethodConfig, ModelConfig, SampleConfig
from training.launch import local, torchrun
from training.loop_config import LaunchConfig, OptimizerConfig, TrainerConfig
from training.metrics import read_metrics
from training.tasks.generator import GeneratorTask

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def small_run(data: Path, out: Path, buckets: tuple[str, ...] = ()) -> GeneratorRun:
    return GeneratorRun(
        out=str(out),
        data=DataConfig(path=str(data), buckets=buckets),
        model=ModelConfig(width=16, depth=2, heads=2),
        trainer=TrainerConfig(
            num_steps=4, global_batch_size=6, device="cpu", log_every=1, tensorboard=False
        ),
    )


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.multiprocess
def test_two_processes_of_torchrun_train_as_one_process_does(
    code_shards: Path, tmp_path: Path
) -> None:
    one = small_run(code_shards, tmp_path / "one")
    local.launch(one)
    two = replace(one, out=str(tmp_path / "two"), launch=LaunchConfig(kind="torchrun", workers=2))
    trained = torchrun.start(two)
    assert trained.checkpoint.name == "step_00000004"
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.multiprocess
def test_videos_and_images_train_as_in_one_process_where_images_leave_parameters_out(
    grid_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """NAR's head and blocks of the axis t."""
    buckets = ("t5_h16_w16", "t1_h16_w16")
    one = replace(
        small_run(grid_shards, tmp_path / "one", buckets),
        method=MethodConfig(name="nar"),
        optimizer=OptimizerConfig(learning_rate=0.01, weight_decay=0.1),
    )
    task = GeneratorTask(one, "cpu")
    assert {task.loader.batch(step).bucket.name for step in range(4)} == set(buckets)
    trained = local.launch(one)
    two_ranks.run(run_on_rank, replace(one, out=str(tmp_path / "two")))
    theirs = tmp_path / "two" / "checkpoints" / trained.checkpoint.name
    weights = [checkpoint_tensors(each, "model/") for each in (trained.checkpoint, theirs)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.multiprocess
def test_a_mistake_under_torchrun_ends_all_processes(code_shards: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(UserError, match="a worker failed"):
        torchrun.start(replace(run, launch=LaunchConfig(kind="torchrun")))


@pytest.mark.slow
def test_training_and_sampling_run_where_ray_av_and_webdataset_are_absent(
    code_shards: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'av', 'decord', 'webdataset', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "from training.__main__ import main\n"
        "sys.exit(main())\n"
    )
    run = tmp_path / "run"
    train = ["train", "--data", str(code_shards), "--out", str(run), "--trainer.num_steps", "2"]
    small = ["--model.width", "16", "--model.heads", "2", "--trainer.device", "cpu"]
    small += ["--trainer.global_batch_size", "6"]
    for command in ([*train, *small], ["sample", str(run), "--max_prompts", "1"]):
        finished = subprocess.run(
            [sys.executable, "-c", program, *command],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
    assert len(list((run / "samples").glob("*.gif"))) == 1
    assert (run / "samples" / "contact_sheet.png").exists()
    assert "1 clips, 4 steps each" in finished.stdout


def test_help_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['training', 'train', '--help']\n"
        "try: runpy.run_module('training', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'ray'} & set(sys.modules)))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "examples:" in finished.stdout
    assert "--trainer.num_steps" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "demo", "--out", "OUT"], "data.path is required"),
        (["train", "demo", "--data", "OUT/none"], "out is required"),
        (["train", "demo", "--data", "OUT/none", "--out", "OUT"], "no such dataset folder"),
        (["train", "nowhere.yaml"], "no such file"),
        (["train", "deno"], "presets: demo"),
        (["train", "demo", "--model.width", "wide"], "model.width"),
        (["train", "demo", "--model.heads", "5"], "heads (5) must divide width"),
        (["sample", "OUT/none"], "not a run folder"),
        (["sample", "OUT", "--top_p", "2"], "top_p (2.0) must lie in (0, 1]"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([each.replace("OUT", str(tmp_path / "out")) for each in arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_config_continues_with_its_own(code_shards: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    small = ["--model.width", "16", "--model.heads", "2", "--trainer.device", "cpu"]
    small += ["--trainer.global_batch_size", "6"]
    start = ["train", "--data", str(code_shards), *out, *small, "--trainer.num_steps", "2"]
    assert main(start) == 0
    assert main(["train", *out, "--trainer.num_steps", "3"]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 3]


def test_the_prompts_of_samples_are_checked_before_anything_is_written(
    code_shards: Path, tmp_path: Path
) -> None:
    from training.sample_ranks import write_samples

    local.launch(small_run(code_shards, tmp_path / "run"))
    settings = SampleConfig(prompts=("a red elephant",), device="cpu")
    with pytest.raises(UserError, match="'elephant' was in no training caption"):
        write_samples(tmp_path / "run", settings)
    assert not (tmp_path / "run" / "samples").exists()
