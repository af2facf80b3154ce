"""Mistakes at the start of a run on ranks: one clear error on each of them, and nobody waits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.shards import Batch, Loader
from tests.conftest import tiny_tokenizer
from tests.loops import run_on_rank, small_run
from tests.ranks import Ranks
from tests.test_tokenizer_task import everything
from tokenizer.folder import save_tokenizer
from tokenizer.settings import UserError
from training.checkpoint import latest_checkpoint
from training.config import GeneratorRun, ModelConfig
from training.held_out import HeldOut
from training.launch import job
from training.loop_config import ParallelConfig
from training.ranks import rank_and_world_size
from training.tasks.task import Task

SECONDS = 60


@pytest.fixture
def finished(code_shards: Path, tmp_path: Path, two_ranks: Ranks) -> GeneratorRun:
    """A run of two ranks that would go on for two steps more."""
    run = small_run(code_shards, tmp_path / "run")
    two_ranks.run(run_on_rank, run)
    return replace(run, trainer=replace(run.trainer, num_steps=8))


def error_of(ranks: Ranks, run: GeneratorRun) -> str:
    """The one error of all ranks."""
    found = ranks.run(run_on_rank, run)
    errors = {each["error"] for each in found}
    assert len(errors) == 1, found
    return errors.pop()


def data_of(run: GeneratorRun, **changes: Any) -> GeneratorRun:
    return replace(run, data=replace(run.data, **changes))


def trainer_of(run: GeneratorRun, **changes: Any) -> GeneratorRun:
    return replace(run, trainer=replace(run.trainer, **changes))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: replace(run, parallel=ParallelConfig(replicate=3)),
            "parallel.replicate (3) does not fit 2 ranks",
        ),
        (
            lambda run: replace(run, parallel=ParallelConfig(replicate=2, shard=2)),
            "parallel.replicate (2) x parallel.shard (2) does not fit 2 ranks",
        ),
        (
            lambda run: data_of(run, split="test"),
            "split 'test' has no samples in bucket t5_h16_w16",
        ),
        (
            lambda run: trainer_of(run, validate_every=2),
            "has no clips of t5_h16_w16, t1_h16_w16 in split 'val' (its splits: train)",
        ),
        (
            lambda run: data_of(run, batch_sizes={"t9": 3}),
            "data.batch_sizes: t9 is not trained on; data.buckets are t5_h16_w16, t1_h16_w16",
        ),
        (
            lambda run: data_of(run, batch_sizes={"t1_h16_w16": 1}),
            "the global batch of bucket t1_h16_w16 (1) must be at least one sample for each of 2",
        ),
        (
            lambda run: trainer_of(run, micro_batch_size=1),
            "the batch of t1_h16_w16 (9) leaves some of 2 ranks without a clip",
        ),
        (
            lambda run: data_of(run, batch_sizes={"t1_h16_w16": 30}),
            "bucket t1_h16_w16 has 20 clips, too few for a batch of 30",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_one_error_on_every_rank(
    change: Callable[[GeneratorRun], GeneratorRun],
    message: str,
    code_shards: Path,
    tmp_path: Path,
    two_ranks: Ranks,
) -> None:
    error = error_of(two_ranks, change(small_run(code_shards, tmp_path / "run")))
    assert message in error
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.multiprocess
def test_a_bucket_too_small_for_its_batch_comes_with_a_table_of_all(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = data_of(small_run(code_shards, tmp_path / "run"), batch_sizes={"t1_h16_w16": 30})
    first, *table = error_of(two_ranks, run).splitlines()
    assert first.startswith("bucket t1_h16_w16 has 20 clips")
    assert [line.split() for line in table] == [
        ["bucket", "clips", "batch", "batches", "an", "epoch", "of", "batches", "of", "codes"],
        ["t5_h16_w16", "20", "6", "3.3", "83%", "67%"],
        ["t1_h16_w16", "20", "30", "0.7", "<-", "too", "few", "clips", "17%", "33%"],
    ]


@pytest.mark.multiprocess
def test_shards_of_another_tokenizer_or_vocabulary_are_refused_on_every_rank(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    data = shutil.copytree(code_shards, tmp_path / "data")
    run = small_run(data, tmp_path / "run")
    save_tokenizer(tiny_tokenizer(seed=1), data / "tokenizer")
    assert "shards of another tokenizer" in error_of(two_ranks, run)
    shutil.copytree(code_shards / "tokenizer", data / "tokenizer", dirs_exist_ok=True)
    description = json.loads((data / "shards.json").read_text())
    description["token_sets"][0] |= {"codebook_size": 99, "bits_per_code": 7}
    (data / "shards.json").write_text(json.dumps(description))
    assert "shards.json: its fingerprint is not that of what it declares" in error_of(
        two_ranks, run
    )


def fails_in_held_out_clips(run: GeneratorRun) -> dict[str, Any]:
    """A run in which the second rank cannot read its part of them."""
    real = HeldOut.batches

    def batches(self: HeldOut) -> Iterator[Batch]:
        if rank_and_world_size()[0] == 1:
            raise UserError("shard 7 is gone")
        yield from real(self)

    with patch.object(HeldOut, "batches", batches):
        return run_on_rank(run)


@pytest.mark.multiprocess
def test_held_out_clips_that_one_rank_cannot_read_end_all(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = trainer_of(small_run(code_shards, tmp_path / "run"), validate_every=2)
    found = two_ranks.run(fails_in_held_out_clips, data_of(run, validation_split="train"))
    assert [each["error"] for each in found] == ["shard 7 is gone (rank 1)"] * 2


@pytest.mark.multiprocess
def test_a_damaged_name_of_the_latest_checkpoint_costs_nothing(
    finished: GeneratorRun, two_ranks: Ranks
) -> None:
    """The newest whole one is found without it."""
    (Path(str(finished.out)) / "checkpoints" / "latest").write_bytes(b"\xff\xfe\x00")
    found = two_ranks.run(run_on_rank, finished)
    assert [each["step"] for each in found] == [8, 8]
    assert min(found[0]["seen"]) == 12  # after step 6, of two batches each


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(bytes(content))


def _set(place: Path, name: str, **values: Any) -> None:
    content = json.loads((place / name).read_text())
    (place / name).write_text(json.dumps(content | values))


def _enlarge(path: Path) -> None:
    """A tensor of a petabyte."""
    content = json.loads(path.read_text())
    first = next(each for each in content["tensors"].values() if len(each["shape"]) == 2)
    first["shape"][1] = 1 << 40
    for part in first["parts"]:
        part["shape"][1] = 1 << 40
    path.write_text(json.dumps(content))


def _shift(path: Path) -> None:
    """Two parts at one place, and a hole."""
    content = json.loads(path.read_text())
    first = next(each for each in content["tensors"].values() if len(each["parts"]) == 2)
    first["parts"][1]["offset"] = first["parts"][0]["offset"]
    path.write_text(json.dumps(content))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: _flip(place / "rank_00001.safetensors"), "have changed)"),
        (
            lambda place: (place / "rank_00000.safetensors").unlink(),
            "rank_00000.safetensors is missing",
        ),
        (
            lambda place: (place / "rank_00001.safetensors").write_bytes(b"\xff" * 100),
            "bytes in files of",
        ),
        (
            lambda place: (place / "rank_00001.safetensors").write_bytes(b"\xff" * 10**6),
            "rank_00001.safetensors: damaged checkpoint",
        ),
        (lambda place: (place / "index.json").write_text("{}"), "index.json: damaged checkpoint"),
        (lambda place: (place / "index.json").unlink(), "index.json: damaged checkpoint"),
        (lambda place: (place / "state.json").write_text("[1]"), "damaged checkpoint"),
        (lambda place: (place / "state.json").write_text('{"format": 1}'), "another version"),
        (lambda place: _set(place, "state.json", step=-1), "damaged checkpoint (step is -1)"),
        (lambda place: _set(place, "state.json", identity=[]), "checkpoint (identity is [])"),
        (lambda place: _set(place, "state.json", guard={}), "damaged checkpoint ('bad_steps')"),
        (lambda place: _enlarge(place / "index.json"), "bytes in files of"),
        (lambda place: _shift(place / "index.json"), "not the whole of their tensor"),
    ],
)
def test_a_damaged_checkpoint_is_one_error_on_every_rank(
    damage: Callable[[Path], Any], message: str, finished: GeneratorRun, two_ranks: Ranks
) -> None:
    checkpoint = latest_checkpoint(Path(str(finished.out)))
    assert checkpoint is not None
    damage(checkpoint)
    assert message in error_of(two_ranks, finished)


@pytest.mark.multiprocess
def test_settings_that_contradict_the_checkpoint_are_refused_on_every_rank(
    finished: GeneratorRun, two_ranks: Ranks
) -> None:
    wider = replace(finished, model=ModelConfig(width=32, depth=2, heads=2))
    assert "made with another model.width (16) than this run (32)" in error_of(two_ranks, wider)
    other = trainer_of(finished, seed=1)
    assert "made with another seed (0) than this run (1)" in error_of(two_ranks, other)
    larger = data_of(finished, batch_sizes={"t1_h16_w16": 10})
    assert "made with another data_order" in error_of(two_ranks, larger)


def _cannot_read_on_rank_1(run: GeneratorRun) -> dict[str, Any]:
    real = job.make_task

    def make_task(*given: Any) -> Task:
        if rank_and_world_size()[0] == 1:
            raise OSError("the disk is gone")
        return real(*given)

    job.make_task = make_task
    try:
        return run_on_rank(run)
    except OSError as error:
        return {"error": str(error)}
    finally:
        job.make_task = real


def _cannot_learn_on_rank_1(run: GeneratorRun) -> dict[str, Any]:
    """From the third batch on, codes that there are not."""
    real = Loader.batch

    def batch(self: Loader, step: int) -> Batch:
        found = real(self, step)
        if rank_and_world_size()[0] == 1 and step >= 2:
            return replace(found, arrays=found.arrays + 16)
        return found

    with patch.object(Loader, "batch", batch):
        return run_on_rank(run)


@pytest.mark.multiprocess
def test_what_one_rank_cannot_learn_from_in_mid_run_ends_all_with_one_error(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    run = small_run(code_shards, tmp_path / "run")
    found = two_ranks.run(_cannot_learn_on_rank_1, run, seconds=SECONDS)
    errors = {each["error"] for each in found}
    assert len(errors) == 1
    assert errors.pop().endswith("(rank 1)")


@pytest.mark.multiprocess
def test_another_kind_of_optimizer_is_refused_on_every_rank(
    finished: GeneratorRun, two_ranks: Ranks
) -> None:
    other = replace(finished, optimizer=replace(finished.optimizer, matrices="adamw"))
    error = error_of(two_ranks, other)
    assert "another optimizer: it remembers momentum, not exp_avg, exp_avg_sq, step" in error


def test_fewer_steps_than_are_done_is_an_error(code_shards: Path, tmp_path: Path) -> None:
    run = small_run(code_shards, tmp_path / "run")
    run_on_rank(run)
    error = run_on_rank(trainer_of(run, num_steps=5))["error"]
    assert "the run is at step 6 already, trainer.num_steps is 5" in error


def test_a_tokenizer_is_not_passed_through_in_parts(pixel_shards: Path, tmp_path: Path) -> None:
    run = everything(pixel_shards, tmp_path / "run", micro_batch_size=2)
    assert "would change what it learns" in run_on_rank(run)["error"]


@pytest.mark.multiprocess
def test_where_one_rank_fails_the_others_say_so_and_do_not_wait(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    found = two_ranks.run(_cannot_read_on_rank_1, small_run(code_shards, tmp_path / "run"))
    assert found[0]["error"] == "OSError: the disk is gone (rank 1)"
    assert found[1]["error"] == "the disk is gone"
