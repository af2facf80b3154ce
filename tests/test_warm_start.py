"""Beginning with another run's weights: every parameter is accounted for, or it is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import checkpoint_tensors
from tests.loops import run_on_rank, small_run
from tests.ranks import Ranks
from training.__main__ import main
from training.config import DataConfig, GeneratorRun, ModelConfig, WarmStartConfig
from training.launch import local
from training.method_config import MethodConfig
from training.run import open_run

VIDEO = "t5_h16_w16"


@pytest.fixture
def raster(grid_shards: Path, tmp_path: Path) -> GeneratorRun:
    """A finished run of raster codes."""
    run = small_run(
        grid_shards,
        tmp_path / "raster",
        data=DataConfig(path=str(grid_shards)),
        method=MethodConfig(name="raster"),
    )
    local.launch(run)
    return run


def from_it(run: GeneratorRun, name: str, **begin: tuple[str, ...]) -> GeneratorRun:
    """A run of `name` of one step with no learning rate: what it begins with."""
    return replace(
        run,
        out=str(Path(str(run.out)).parent / name),
        method=MethodConfig(name=name.split("_")[0]),  # type: ignore[arg-type]
        begin=WarmStartConfig(run=run.out, **begin),  # type: ignore[arg-type]
        trainer=replace(run.trainer, num_steps=1),
        optimizer=replace(run.optimizer, learning_rate=1e-30, matrix_learning_rate=1e-30),
    )


@pytest.mark.parametrize(
    ("method", "fresh"),
    [
        ("par", ("transitions.*",)),
        (
            "nar",
            ("heads.1.*", "heads.2.*", "transformer.head_blocks.*", "transformer.norms.[12].*"),
        ),
    ],
)
def test_a_raster_model_becomes_another_methods(
    method: str, fresh: tuple[str, ...], raster: GeneratorRun, tmp_path: Path
) -> None:
    """All that both have is taken, averaged, and the report says what is not."""
    local.launch(from_it(raster, method, fresh=fresh))
    theirs = open_run(tmp_path / "raster").generator.state_dict()
    ours = open_run(tmp_path / method).generator.state_dict()
    new = sorted(ours.keys() - theirs.keys())
    assert new
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-20)
    report = (tmp_path / method / "warm_start.txt").read_text()
    assert f"begins with {len(theirs)} tensors of {tmp_path}/raster" in report
    assert [line for line in report.splitlines() if line.startswith("begins at random")] == [
        f"begins at random: {name}" for name in new
    ]


def test_what_does_not_fit_is_named_in_one_line(
    raster: GeneratorRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def error(run: GeneratorRun) -> str:
        found = run_on_rank(run)
        assert not (Path(str(run.out)) / "checkpoints").exists()
        return str(found["error"])

    assert "transitions.weight is not there; say with begin.fresh" in error(from_it(raster, "par"))
    wider = replace(from_it(raster, "raster_2"), model=ModelConfig(width=32, depth=2, heads=2))
    assert "codes.weight has another shape ([16, 16] there, [16, 32] here)" in error(wider)
    shallow = replace(from_it(raster, "raster_3"), model=ModelConfig(width=16, depth=1, heads=2))
    assert "transformer.blocks.1.attention.out.weight is there only" in error(shallow)
    fits = replace(
        from_it(raster, "raster_4", left_out=("transformer.blocks.1.*",)),
        model=ModelConfig(width=16, depth=1, heads=2),
    )
    assert run_on_rank(fits)["step"] == 1
    wrong = from_it(raster, "raster_5", fresh=("nothing.*",))
    assert "begin.fresh: 'nothing.*' is the name of no parameter" in error(wrong)
    nowhere = from_it(raster, "raster_6")
    nowhere = replace(nowhere, begin=WarmStartConfig(run=str(tmp_path / "nowhere")))
    assert "neither a run with a finished checkpoint nor an exported one" in error(nowhere)
    capsys.readouterr()


def test_rows_that_stand_for_other_things_are_not_taken_for_these(
    raster: GeneratorRun, tmp_path: Path
) -> None:
    """Codes of another tokenizer, or the same number of other words."""
    record = tmp_path / "raster" / "run.json"
    changed = json.loads(record.read_text())
    record.write_text(json.dumps(changed | {"tokenizer": "0" * 64}))
    error = run_on_rank(from_it(raster, "raster_2"))["error"]
    assert "codes.weight is for codes of another tokenizer there" in error
    assert "heads.0.weight is for codes of another tokenizer there" in error
    words = tmp_path / "raster" / "vocabulary.json"
    known = json.loads(words.read_text())
    words.write_text(json.dumps(known | {"names": known["names"][::-1]}))
    some = from_it(raster, "raster_3", fresh=("codes.*", "heads.*"))
    assert "condition.pooled.weight is for other words" in run_on_rank(some)["error"]
    fresh = ("codes.*", "heads.*", "condition.*")
    assert run_on_rank(from_it(raster, "raster_4", fresh=fresh))["step"] == 1
    report = (tmp_path / "raster_4" / "warm_start.txt").read_text()
    assert "begins at random: codes.weight" in report


@pytest.mark.multiprocess
def test_an_exported_run_is_a_beginning_too_and_going_on_does_not_read_it_again(
    raster: GeneratorRun, tmp_path: Path, two_ranks: Ranks
) -> None:
    exported = tmp_path / "exported"
    assert main(["export", str(raster.out), "-o", str(exported)]) == 0
    run = replace(from_it(raster, "raster_7"), begin=WarmStartConfig(run=str(exported)))
    assert [each["step"] for each in two_ranks.run(run_on_rank, run)] == [1, 1]
    weights = checkpoint_tensors(tmp_path / "raster_7" / "checkpoints" / "step_00000001", "model/")
    for name, value in open_run(exported).generator.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-20)
    (exported / "model.safetensors").unlink()
    longer = replace(run, trainer=replace(run.trainer, num_steps=2))
    assert [each["step"] for each in two_ranks.run(run_on_rank, longer)] == [2, 2]
