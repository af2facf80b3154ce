"""Mistakes at the start of a run on ranks: one clear error on each of them, and nobody waits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_tokenizer
from tests.loops import run_on_rank, small_run
from tests.ranks import Ranks
from tokenizer.folder import save_tokenizer
from training.checkpoint import latest_checkpoint
from training.config import GeneratorRun, ModelConfig
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


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: _flip(place / "rank_00001.safetensors"), "have changed)"),
        (
            lambda place: (place / "rank_00000.safetensors").unlink(),
            "rank_00000.safetensors: damaged",
        ),
        (
            lambda place: (place / "rank_00001.safetensors").write_bytes(b"\xff" * 100),
            "rank_00001.safetensors: damaged checkpoint",
        ),
        (lambda place: (place / "index.json").write_text("{}"), "index.json: damaged checkpoint"),
        (lambda place: (place / "index.json").unlink(), "index.json: damaged checkpoint"),
        (lambda place: (place / "state.json").write_text("[1]"), "damaged checkpoint"),
        (lambda place: (place / "state.json").write_text('{"format": 1}'), "another version"),
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


@pytest.mark.multiprocess
def test_where_one_rank_fails_the_others_say_so_and_do_not_wait(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    found = two_ranks.run(_cannot_read_on_rank_1, small_run(code_shards, tmp_path / "run"))
    assert found[0]["error"] == "OSError: the disk is gone (rank 1)"
    assert found[1]["error"] == "the disk is gone"
