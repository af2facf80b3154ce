"""Bad steps and polite ends: all ranks act alike, nothing sound is lost, and clips are named."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import assert_same_state, checkpoint_tensors, latest_tensors
from tests.loops import clips_by_position, guarded, run_on_rank, small_run
from tests.ranks import Ranks
from tests.test_tokenizer_task import everything
from tokenizer.learner import Learner
from tokenizer.losses import LossOutput
from training.checkpoint import latest_checkpoint, read_state
from training.guard import Guard
from training.launch import local
from training.loop_config import GuardConfig
from training.metrics import read_metrics


def reports(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]


@pytest.mark.multiprocess
def test_a_signal_to_one_rank_ends_all_after_the_same_step_and_the_run_goes_on_exactly(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    whole, stopped = (small_run(code_shards, tmp_path / name) for name in ("whole", "stopped"))
    two_ranks.run(run_on_rank, whole)
    first = two_ranks.run(partial(run_on_rank, signalled_at=(1, 5)), stopped)
    assert [(each["step"], each["is_finished"]) for each in first] == [(3, False)] * 2
    assert latest_checkpoint(tmp_path / "stopped").name == "step_00000003"  # type: ignore[union-attr]
    second = two_ranks.run(run_on_rank, stopped)
    assert [(each["step"], each["is_finished"]) for each in second] == [(6, True)] * 2
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.multiprocess
def test_where_one_rank_has_no_number_all_stop_with_one_error_and_its_clips_are_named(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = small_run(code_shards, tmp_path / "run")
    found = two_ranks.run(partial(run_on_rank, broken_at=(1, 7)), run)
    errors = {each["error"] for each in found}
    assert len(errors) == 1
    assert "step 4: the loss is not a number, with clips " in errors.pop()
    (report,) = reports(tmp_path / "run")
    assert (report["step"], report["position"], report["action"]) == (4, 6, "stop")
    clips = sum(len(found[1]["seen"][position]) for position in (6, 7))
    assert len(report["clips"]) == clips
    assert all(each.isfinite().all() for each in latest_tensors(tmp_path / "run").values())


@pytest.mark.multiprocess
def test_a_skipped_step_leaves_no_trace_and_its_data_is_not_seen_again(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """Weights after it are those before it; a run that is killed behind it ends alike."""
    broken = partial(run_on_rank, broken_at=(1, 5))
    whole, killed = (
        small_run(
            code_shards, tmp_path / name, guard=guarded("skip"), trainer={"keep_checkpoints": 9}
        )
        for name in ("whole", "killed")
    )
    found = two_ranks.run(broken, whole)
    assert [each["step"] for each in found] == [6, 6]
    assert sorted(found[0]["seen"]) == list(range(14))
    assert latest_checkpoint(tmp_path / "whole").name == "step_00000006"  # type: ignore[union-attr]
    assert len(reports(tmp_path / "whole")) == 1
    assert read_metrics(tmp_path / "whole")[-1]["bad_steps"] == 1
    two_ranks.run(partial(broken, dies_at=9), killed)
    two_ranks.run(broken, killed)
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    plain = small_run(code_shards, tmp_path / "plain", trainer={"keep_checkpoints": 9})
    two_ranks.run(run_on_rank, plain)
    before = [tmp_path / name / "checkpoints" / "step_00000002" for name in ("whole", "plain")]
    ours, theirs = (checkpoint_tensors(each) for each in before)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.multiprocess
def test_rolled_back_is_as_if_the_data_had_not_been_there(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = small_run(code_shards, tmp_path / "run", guard=guarded("roll_back"))
    found = two_ranks.run(partial(run_on_rank, broken_at=(0, 7)), run)
    assert [each["step"] for each in found] == [6, 6]
    assert sorted(found[0]["seen"]) == list(range(16))  # step 3 and the bad 4 are left out
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert read_state(checkpoint)["position"] == 16
    assert read_state(checkpoint)["guard"]["bad_steps"] == 1


@pytest.mark.multiprocess
def test_bad_steps_have_a_budget(code_shards: Path, tmp_path: Path, two_ranks: Ranks) -> None:
    guard = guarded("skip", budget=0)
    run = small_run(code_shards, tmp_path / "run", guard=guard)
    found = two_ranks.run(partial(run_on_rank, broken_at=(1, 5)), run)
    assert {each["error"].partition("; ")[2] for each in found} == {
        f"it is the bad step number 1, guard.budget allows 0: see {tmp_path}/run/bad_steps.jsonl"
    }


@pytest.mark.multiprocess
def test_rolling_back_needs_a_checkpoint(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = small_run(code_shards, tmp_path / "run", guard=guarded("roll_back"))
    found = two_ranks.run(partial(run_on_rank, broken_at=(1, 1)), run)
    assert all("nothing to roll back to" in each["error"] for each in found)


@pytest.mark.multiprocess
def test_a_loss_far_above_the_last_ones_is_bad_too(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    guard = guarded("skip", spike=6.0, warmup=2)
    trainer = {"batches_per_step": 1, "num_steps": 8}
    run = small_run(code_shards, tmp_path / "run", guard=guard, trainer=trainer)
    found = two_ranks.run(partial(run_on_rank, loud_at=6), run)
    assert [each["step"] for each in found] == [8, 8]
    (report,) = reports(tmp_path / "run")
    assert report["position"] == 6
    assert "is far above those of the last steps" in report["reason"]
    assert report["clips"]


def test_losses_are_compared_with_those_of_the_same_shapes_only() -> None:
    guard = Guard(GuardConfig(spike=5.0, warmup=2, window=4))
    for loss in (1.0, 1.1, 0.9, 1.0):
        assert guard.verdict(loss, [1.0], "images") is None
        assert guard.verdict(10 * loss, [1.0], "videos") is None
    assert guard.verdict(10.0, [1.0], "images") is not None
    assert guard.verdict(10.0, [1.0], "videos") is None
    assert (
        guard.verdict(1.0, [float("inf")], "videos") == "the gradient of the loss is not a number"
    )
    again = Guard(GuardConfig(spike=5.0, warmup=2, window=4), guard.state())
    assert again.state() == json.loads(json.dumps(guard.state()))
    assert again.verdict(10.0, [1.0], "images") is not None


def test_a_guard_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup \(5\) must lie between 2 and window \(3\)"):
        GuardConfig(warmup=5, window=3)


def test_one_process_stops_too(code_shards: Path, tmp_path: Path) -> None:
    run = small_run(code_shards, tmp_path / "run")
    found = run_on_rank(run, signalled_at=(0, 3))
    assert (found["step"], found["is_finished"]) == (2, False)
    assert clips_by_position([found]).keys() == set(range(4))


@pytest.mark.slow
def test_a_skipped_step_leaves_no_trace_in_a_codebook_either(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its running means follow every forward pass; without numbers in them they would be lost."""
    real = Learner.forward

    calls = count()

    def broken(self: Learner, frames: Any, progress: float, generator: Any) -> LossOutput:
        factor = float("nan") if next(calls) == 3 else 1.0
        return real(self, frames * factor, progress, generator)

    monkeypatch.setattr(Learner, "forward", broken)
    run = replace(everything(pixel_shards, tmp_path / "run"), guard=guarded("skip"))
    assert local.launch(run).step == 6
    assert len(reports(tmp_path / "run")) == 1
    assert all(each.isfinite().all() for each in latest_tensors(tmp_path / "run").values())


def test_a_checkpoint_of_the_same_step_replaces_the_other_at_no_risk(
    code_shards: Path, tmp_path: Path
) -> None:
    """A bad step after a checkpoint, then a signal: what is there is never without a whole one."""
    run = small_run(code_shards, tmp_path / "run", guard=guarded("skip"))
    found = run_on_rank(run, signalled_at=(0, 5), broken_at=(0, 5))
    assert (found["step"], found["is_finished"]) == (2, False)
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert (checkpoint.name, read_state(checkpoint)["position"]) == ("step_00000002", 6)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_00000009\n")
    assert latest_checkpoint(tmp_path / "run") == checkpoint
    assert run_on_rank(run)["step"] == 6
