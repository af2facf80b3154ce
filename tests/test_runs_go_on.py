"""Processes that end: signals, kills, restarts by launchers; `tessera resume` and `export`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import assert_same_state
from tests.loops import run_on_rank, small_run
from tests.ranks import Ranks
from tests.test_tokenizer_task import everything
from tokenizer.folder import load_tokenizer
from tokenizer.settings import save_settings
from training import owner
from training.__main__ import main
from training.checkpoint import latest_checkpoint, read_state
from training.config import GeneratorRun, SampleConfig
from training.launch import local
from training.loop_config import LaunchConfig
from training.metrics import read_metrics
from training.run import open_run
from training.samples import generate

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def started(run: GeneratorRun, place: Path) -> subprocess.Popen[str]:
    """`python -m training train` with these settings, in a process group of its own."""
    settings = place / "settings.yaml"
    save_settings(run, settings)
    return subprocess.Popen(
        [sys.executable, "-m", "training", "train", str(settings)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def has_trained(run: Path) -> Callable[[], bool]:
    return lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["local", "torchrun"])
def test_a_sigterm_ends_the_step_saves_and_exits_0_and_resume_goes_on_exactly(
    launch: str, code_shards: Path, tmp_path: Path
) -> None:
    kind = LaunchConfig(kind=launch, workers=2)  # type: ignore[arg-type]
    longer = {"num_steps": 400, "checkpoint_every": 1000}
    run = small_run(code_shards, tmp_path / "run", trainer=longer, launch=kind)
    process = started(run, tmp_path)
    wait_for(has_trained(tmp_path / "run"), process, 60)
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "SIGTERM: finishing this step, then saving" in errors
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    step = read_state(checkpoint)["step"]
    assert 2 <= step < 400
    assert f"stopped after step {step}; go on with: tessera resume {tmp_path}/run" in told
    if launch == "torchrun":
        return
    until = ["--trainer.num_steps", str(step + 3)]
    assert main(["resume", str(tmp_path / "run"), *until]) == 0
    whole = small_run(code_shards, tmp_path / "whole", trainer=longer | {"num_steps": step + 3})
    run_on_rank(whole)
    assert_same_state(tmp_path / "run", tmp_path / "whole")


@pytest.mark.ray
def test_a_rank_that_is_killed_under_ray_is_replaced_and_the_run_ends_bit_for_bit_alike(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """kill -9 of one worker, in the midst of training."""
    kind = LaunchConfig(kind="ray", workers=2, max_failures=2)
    longer = {"num_steps": 60, "checkpoint_every": 5}
    disturbed, whole = (
        small_run(code_shards, tmp_path / name, trainer=longer, launch=kind)
        for name in ("disturbed", "whole")
    )
    process = started(disturbed, tmp_path)
    checkpoints = tmp_path / "disturbed" / "checkpoints"
    wait_for(lambda: (checkpoints / "latest").exists(), process, 180)
    os.kill(_train_workers()[-1], signal.SIGKILL)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "trained 60 steps" in told
    assert "continuing after step" in errors
    assert errors.count("step 60/60") == 1  # what workers say comes here, once
    two_ranks.run(run_on_rank, whole)
    assert_same_state(tmp_path / "disturbed", tmp_path / "whole")
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("disturbed", "whole")
    ]
    assert losses[0] == losses[1]


def _train_workers() -> list[int]:
    """The processes in which Ray trains."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return sorted(found)


def test_a_folder_has_one_owner_at_a_time(
    code_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs in one folder would remove each other's checkpoints."""
    monkeypatch.setattr(owner, "PATIENCE", 0.0)
    run = small_run(code_shards, tmp_path / "run", trainer={"num_steps": 2})
    with owner.Owner(tmp_path / "run") as other:
        other.take()
        found = run_on_rank(run)
        assert f"run: process {os.getpid()} of " in found["error"]
        assert "trains here; wait for its end, or give another folder" in found["error"]
        assert [each.name for each in (tmp_path / "run").iterdir()] == [owner.FILE]
    assert run_on_rank(run)["step"] == 2


def test_what_an_owner_writes_before_it_ends_is_gone_on_from(
    code_shards: Path, tmp_path: Path
) -> None:
    """As after a SIGTERM, when the next process is there before the last checkpoint."""
    ahead, run = (
        small_run(code_shards, tmp_path / name, trainer={"num_steps": number})
        for name, number in (("ahead", 4), ("run", 2))
    )
    for each in (ahead, run):
        run_on_rank(each)
    before = owner.Owner(tmp_path / "run")
    before.take()
    checkpoints = tmp_path / "run" / "checkpoints"

    def end() -> None:
        time.sleep(0.7)
        shutil.copytree(tmp_path / "ahead" / "checkpoints", checkpoints, dirs_exist_ok=True)
        before.__exit__()

    thread = threading.Thread(target=end)
    thread.start()
    found = run_on_rank(small_run(code_shards, tmp_path / "run"))
    thread.join()
    assert found["step"] == 6
    assert min(found["seen"]) == 8  # after step 4, of two batches each


@pytest.mark.slow
def test_resume_needs_a_run_and_its_settings(
    code_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "no run with a checkpoint to resume" in capsys.readouterr().err
    local.launch(small_run(code_shards, tmp_path / "run"))
    assert main(["resume", str(tmp_path / "run"), "--trainer.seed", "5"]) == 2
    assert "made with another seed (0) than this run (5)" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run"), "--trainer.num_steps", "7"]) == 0
    assert "trained 7 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tokenizers_run_is_resumed_too(pixel_shards: Path, tmp_path: Path) -> None:
    run, whole = (everything(pixel_shards, tmp_path / name) for name in ("run", "whole"))
    local.launch(replace(run, trainer=replace(run.trainer, num_steps=6)))
    local.launch(whole)
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert_same_state(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("weights", ["averaged", "trained"])
def test_an_exported_run_samples_as_the_run_does(
    weights: str, code_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decay = 0.9 if weights == "averaged" else 0.0
    local.launch(small_run(code_shards, tmp_path / "run", trainer={"ema_decay": decay}))
    out = tmp_path / "exported"
    assert main(["export", str(tmp_path / "run"), "-o", str(out), "--weights", weights]) == 0
    assert "step 6" in capsys.readouterr().out
    run, exported = open_run(tmp_path / "run"), open_run(out)
    assert (exported.step, exported.fingerprint) == (6, run.fingerprint)
    prompts: list[str | None] = ["a red seven"]
    first, second = (generate(each, prompts, SampleConfig()) for each in (run, exported))
    assert (first.codes == second.codes).all()
    assert not (out / "checkpoints").exists()
    assert main(["export", str(tmp_path / "run"), "-o", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_an_export_in_bfloat16_is_half_as_large_and_opens(
    code_shards: Path, tmp_path: Path
) -> None:
    local.launch(small_run(code_shards, tmp_path / "run"))
    for dtype in ("float32", "bfloat16"):
        out = str(tmp_path / dtype)
        assert main(["export", str(tmp_path / "run"), "-o", out, "--dtype", dtype]) == 0
    full, half = (
        load_file(tmp_path / name / "model.safetensors") for name in ("float32", "bfloat16")
    )
    assert full.keys() == half.keys()
    assert {str(each.dtype) for each in half.values()} == {"torch.bfloat16"}
    opened = open_run(tmp_path / "bfloat16")
    for name, value in opened.generator.state_dict().items():
        assert torch.equal(value, full[name].bfloat16().float())


def test_a_tokenizers_run_is_exported_as_a_tokenizer(pixel_shards: Path, tmp_path: Path) -> None:
    local.launch(everything(pixel_shards, tmp_path / "run"))
    out = tmp_path / "exported"
    assert main(["export", str(tmp_path / "run"), "-o", str(out)]) == 0
    result = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert load_tokenizer(out).fingerprint == result.fingerprint


def test_what_cannot_be_exported_is_said(
    code_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "a")]) == 2
    assert "no checkpoint to export; it is no run, or has none yet" in capsys.readouterr().err
    local.launch(small_run(code_shards, tmp_path / "run"))
    asked = ["--checkpoint", "step_00000001"]
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "a"), *asked]) == 2
    assert "there are step_00000004, step_00000006" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
