"""A run survives: stopped, killed, on other numbers of ranks, it is the run that it was."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import assert_same_state, checkpoint_tensors
from tests.conftest import write_random_shards
from tests.loops import clips_by_position, run_on_rank, sharded, small_run
from tests.ranks import Ranks
from training import tensor_parts
from training.block_config import BlockConfig
from training.checkpoint import latest_checkpoint
from training.config import DataConfig, ModelConfig
from training.loop_config import OptimizerConfig, ParallelConfig
from training.method_config import MethodConfig
from training.metrics import read_metrics


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("replicate", "precision"), [(1, "float32"), (2, "float32"), (1, "bfloat16")]
)
def test_a_run_on_ranks_that_is_killed_ends_bit_for_bit_where_the_undisturbed_one_does(
    replicate: int, precision: str, code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    _is_killed_and_resumed(code_shards, tmp_path, two_ranks, sharded(replicate), precision)


@pytest.mark.four_ranks
def test_a_run_on_groups_of_ranks_that_is_killed_ends_bit_for_bit_alike_too(
    code_shards: Path, tmp_path: Path, four_ranks: Ranks
) -> None:
    _is_killed_and_resumed(code_shards, tmp_path, four_ranks, sharded(2), "bfloat16")


def _is_killed_and_resumed(
    data: Path, place: Path, ranks: Ranks, parallel: ParallelConfig, precision: str
) -> None:
    dropping = ModelConfig(width=16, depth=2, heads=2, block=BlockConfig(dropout=0.1))
    whole, killed = (
        small_run(
            data,
            place / name,
            parallel=parallel,
            model=dropping,
            trainer={"precision": precision},
        )
        for name in ("whole", "killed")
    )
    undisturbed = ranks.run(run_on_rank, whole)
    first = ranks.run(partial(run_on_rank, dies_at=10), killed)
    assert all(each.get("killed") for each in first)
    second = ranks.run(run_on_rank, killed)
    assert {each["step"] for each in second} == {6}
    assert min(second[0]["seen"]) == 8  # step 4, two batches each
    assert_same_state(place / "killed", place / "whole")
    assert losses(place / "killed") == losses(place / "whole")
    expected = clips_by_position(undisturbed)
    assert clips_by_position(second) == {each: expected[each] for each in range(8, 12)}


@pytest.mark.multiprocess
def test_two_ranks_then_one_then_two_see_the_same_clips_and_lose_alike(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    whole = small_run(code_shards, tmp_path / "whole")
    expected = clips_by_position([run_on_rank(whole)])
    seen = _in_turns(code_shards, tmp_path, [(two_ranks, 2), (None, 4), (two_ranks, 6)])
    assert seen == expected
    assert losses(tmp_path / "turns") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.four_ranks
def test_two_ranks_then_one_then_four_see_the_same_clips_and_lose_alike(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks, four_ranks: Ranks
) -> None:
    whole = small_run(code_shards, tmp_path / "whole")
    expected = clips_by_position([run_on_rank(whole)])
    seen = _in_turns(code_shards, tmp_path, [(two_ranks, 2), (None, 4), (four_ranks, 6)])
    assert seen == expected
    assert losses(tmp_path / "turns") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.fixture(scope="module")
def three_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and videos of two lengths, codes of one grid each."""
    shapes = {"t9_h16_w16": (9, 16, 16), "t5_h16_w32": (5, 16, 32), "t1_h16_w16": (1, 16, 16)}
    folder = tmp_path_factory.mktemp("three") / "data"
    return write_random_shards(folder, "codes", scales=(2,), shapes=shapes)


@pytest.mark.multiprocess
@pytest.mark.parametrize("method", ["nar", "arpg"])
def test_images_and_videos_of_three_shapes_train_together_on_two_ranks_as_on_one(
    method: str, three_shapes: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """Batches of different sizes, added up in one step; NAR's head of t has no use for images."""
    data = DataConfig(
        path=str(three_shapes),
        buckets=("t9_h16_w16", "t5_h16_w32", "t1_h16_w16"),
        batch_sizes={"t9_h16_w16": 3, "t5_h16_w32": 5, "t1_h16_w16": 11},
    )
    rope = ModelConfig(width=16, depth=2, heads=2, block=BlockConfig(position="rope"))
    changes = {
        "data": data,
        "model": rope,
        "method": MethodConfig(name=method),  # type: ignore[arg-type]
        # AdamW makes whole steps of gradients that are 0 but for rounding, as the first ones are.
        "optimizer": OptimizerConfig(matrices="muon", learning_rate=2e-4),
        "trainer": {"num_steps": 12, "batches_per_step": 3, "micro_batch_size": 4},
    }
    one, two = (small_run(three_shapes, tmp_path / name, **changes) for name in ("one", "two"))
    alone = run_on_rank(one)
    found = two_ranks.run(run_on_rank, two)
    assert [each["step"] for each in found] == [12, 12]
    expected = clips_by_position([alone])
    assert {len(each) for each in expected.values()} == {3, 5, 11}
    assert clips_by_position(found) == expected
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    told = set()
    for line in read_metrics(tmp_path / "two"):
        shapes = {each: line[f"loss/{each}"] for each in data.buckets if f"loss/{each}" in line}
        assert min(shapes.values()) - 1e-6 <= line["loss"] <= max(shapes.values()) + 1e-6
        told |= shapes.keys()
    assert told == set(data.buckets)


@pytest.mark.multiprocess
def test_after_a_crash_while_a_checkpoint_is_written_the_one_before_it_loads(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    whole, crashed = (small_run(code_shards, tmp_path / name) for name in ("whole", "crashed"))
    two_ranks.run(run_on_rank, whole)
    with (
        Ranks(2) as doomed,
        pytest.raises(AssertionError, match=r"the process is gone|no answer in time"),
    ):
        doomed.run(partial(run_on_rank, crashes_saving=4), crashed, seconds=20)
    folder = tmp_path / "crashed" / "checkpoints"
    assert sorted(each.name for each in folder.iterdir()) == [
        ".step_00000004.writing",
        "latest",
        "step_00000002",
    ]
    found = two_ranks.run(run_on_rank, crashed)
    assert min(found[0]["seen"]) == 4  # after step 2
    assert_same_state(tmp_path / "crashed", tmp_path / "whole")
    assert not list(folder.glob(".*"))


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_one_before(
    code_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensor_parts.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step_00000004" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(tensor_parts, "save_file", full)
    found = run_on_rank(small_run(code_shards, tmp_path / "run"))
    assert "a checkpoint could not be written ([Errno 28] No space left" in found["error"]
    assert latest_checkpoint(tmp_path / "run").name == "step_00000002"  # type: ignore[union-attr]


@pytest.mark.multiprocess
def test_what_only_the_first_rank_fails_to_write_is_an_error_on_all(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    found = two_ranks.run(
        partial(run_on_rank, cannot_publish=4), small_run(code_shards, tmp_path / "run")
    )
    assert {each["error"] for each in found} == {
        f"{tmp_path}/run/checkpoints: a checkpoint could not be written (the disk is full)"
    }
    assert latest_checkpoint(tmp_path / "run").name == "step_00000002"  # type: ignore[union-attr]


def test_a_run_that_was_set_back_goes_on_from_there_and_keeps_what_it_writes(
    code_shards: Path, tmp_path: Path
) -> None:
    """Whoever points `latest` to an older checkpoint keeps the ones that are written then."""
    run = small_run(code_shards, tmp_path / "run", trainer={"keep_checkpoints": 3})
    run_on_rank(run)
    folder = tmp_path / "run" / "checkpoints"
    (folder / "latest").write_text("step_00000002\n")
    shorter = small_run(code_shards, tmp_path / "run", trainer={"num_steps": 4})
    assert min(run_on_rank(shorter)["seen"]) == 4
    assert (folder / "latest").read_text() == "step_00000004\n"
    assert "step_00000004" in {each.name for each in folder.iterdir()}


@pytest.mark.slow
def test_checkpoints_are_written_while_training_goes_on_one_at_a_time(
    code_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save takes longer than a step; it is of the state when it was begun all the same."""
    real, writing, most = tensor_parts.save_file, [0], [0]

    def slow(tensors: Any, path: Path) -> None:
        writing[0] += 1
        most[0] = max(most[0], writing[0])
        time.sleep(0.2)
        real(tensors, path)
        writing[0] -= 1

    monkeypatch.setattr(tensor_parts, "save_file", slow)
    trainer = {"checkpoint_every": 1, "keep_checkpoints": 9}
    run_on_rank(small_run(code_shards, tmp_path / "aside", trainer=trainer))
    monkeypatch.setattr(tensor_parts, "save_file", real)
    run_on_rank(
        small_run(code_shards, tmp_path / "waited", trainer=trainer | {"save_aside": False})
    )
    assert most == [1]
    for step in range(1, 7):
        ours, theirs = (
            checkpoint_tensors(tmp_path / name / "checkpoints" / f"step_{step:08d}")
            for name in ("aside", "waited")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_old_checkpoints_go_but_for_those_kept_for_good(code_shards: Path, tmp_path: Path) -> None:
    trainer = {"checkpoint_every": 1, "keep_checkpoints": 2, "keep_every": 3}
    run_on_rank(small_run(code_shards, tmp_path / "run", trainer=trainer))
    names = sorted(each.name for each in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert names == ["step_00000003", "step_00000005", "step_00000006"]


def _in_turns(
    data: Path, place: Path, turns: list[tuple[Ranks | None, int]]
) -> dict[int, list[str]]:
    """One run on other ranks each time, up to the given step; the clips by position."""
    seen: dict[int, list[str]] = {}
    for ranks, until in turns:
        run = small_run(data, place / "turns", trainer={"num_steps": until})
        found = [run_on_rank(run)] if ranks is None else ranks.run(run_on_rank, run)
        assert all(each.get("step") == until for each in found), found
        seen |= clips_by_position(found)
    return seen
