"""Clips of another size than a run was trained on: where that is possible, and where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from tests.test_trainer import generator_run
from tokenizer.settings import UserError
from training.block_config import BlockConfig
from training.config import ConditionConfig, GuidanceConfig, MethodConfig, ModelConfig, SampleConfig
from training.launch import local
from training.resize import resized
from training.run import OpenedRun, open_run
from training.samples import generate

SETTINGS = SampleConfig(guidance=GuidanceConfig(scale=1.0))


def make_run(data: Path, out: Path, method: str, position: str = "rope") -> OpenedRun:
    run = generator_run(
        data,
        out,
        1,
        method=MethodConfig(name=method),  # type: ignore[arg-type]
        model=ModelConfig(
            width=16,
            depth=2,
            heads=2,
            block=BlockConfig(position=position),  # type: ignore[arg-type]
        ),
        condition=ConditionConfig(kind="none"),
    )
    local.launch(run)
    return open_run(out)


@pytest.mark.parametrize("method", ["raster", "par", "nar", "arpg"])
def test_the_same_weights_make_clips_of_another_grid(
    method: str, grid_shards: Path, tmp_path: Path
) -> None:
    run = make_run(grid_shards, tmp_path / "run", method)
    larger = generate(resized(run, (9, 32, 16)), [None], SETTINGS)
    assert larger.codes.shape == (1, 3 * 4 * 2)
    assert larger.frames.shape == (1, 9, 32, 16, 3)
    own = generate(resized(run, (5, 16, 16)), [None, None], SETTINGS)
    assert np.array_equal(own.codes, generate(run, [None, None], SETTINGS).codes)
    with pytest.raises(UserError, match="nearest are 5 and 9"):
        resized(run, (7, 16, 16))
    with pytest.raises(UserError, match="nearest are 16 and 24"):
        resized(run, (5, 16, 20))
    with pytest.raises(UserError, match="trained on videos"):
        resized(run, (1, 16, 16))
    if method == "par":
        with pytest.raises(UserError, match="2 regions do not divide 3 cells"):
            resized(run, (5, 24, 16))


def test_the_command_takes_another_size_and_refuses_it_where_it_cannot_be(
    grid_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(grid_shards, tmp_path / "rope", "arpg")
    out = tmp_path / "samples"
    sample = ["sample", "--guidance.scale", "1", "--out", str(out), "--shape", "[9, 24, 16]"]
    assert main([sample[0], str(tmp_path / "rope"), *sample[1:]]) == 0
    make_run(grid_shards, tmp_path / "table", "arpg", position="table")
    capsys.readouterr()
    assert main([sample[0], str(tmp_path / "table"), *sample[1:]]) == 2
    assert "train with --model.block.position rope" in capsys.readouterr().err


def test_next_scale_has_learned_its_scales(code_shards: Path, tmp_path: Path) -> None:
    run = make_run(code_shards, tmp_path / "run", "next_scale")
    with pytest.raises(UserError, match="has learned its scales"):
        resized(run, (9, 16, 16))
