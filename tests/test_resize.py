"""Clips of another size than a run was trained on: where that is possible, and where not."""

from __future__ import annotations

from dataclasses import replace
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


def make_run(
    data: Path, out: Path, method: str, position: str = "rope", buckets: tuple[str, ...] = ()
) -> OpenedRun:
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
    local.launch(replace(run, data=replace(run.data, buckets=buckets)))
    return open_run(out)


@pytest.mark.slow
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
    image = generate(resized(run, (1, 32, 16)), [None], SETTINGS)
    assert image.frames.shape == (1, 1, 32, 16, 3)
    if method == "par":
        with pytest.raises(UserError, match="2 regions do not divide 3 cells"):
            resized(run, (5, 24, 16))


def test_the_command_takes_another_size_and_refuses_it_where_it_cannot_be(
    grid_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(grid_shards, tmp_path / "rope", "arpg")
    make_run(grid_shards, tmp_path / "table", "arpg", position="table")

    def sample(run: str, shape: str) -> int:
        out = tmp_path / "samples" / run / shape
        flags = ["--guidance.scale", "1", "--num", "1", "--out", str(out), "--shape", shape]
        return main(["sample", str(tmp_path / run), *flags])

    assert sample("rope", "[9, 24, 16]") == 0
    assert sample("table", "[5, 16, 8]") == 0
    capsys.readouterr()
    assert sample("table", "[9, 24, 16]") == 2
    said = capsys.readouterr().err
    assert "shape ([9, 24, 16]): a grid of 3 x 3 x 2 cells does not fit in 2 x 2 x 2" in said
    assert "train with --model.block.position rope" in said


def test_a_run_of_images_has_learned_nothing_of_time(grid_shards: Path, tmp_path: Path) -> None:
    run = make_run(grid_shards, tmp_path / "run", "arpg", buckets=("t1_h16_w16",))
    assert resized(run, (1, 24, 16)).schedule("t1_h24_w16").num_tokens == 6
    with pytest.raises(UserError, match=r"\[5, 16, 16\]\): this run was trained on images"):
        resized(run, (5, 16, 16))


def test_next_scale_has_learned_its_scales(code_shards: Path, tmp_path: Path) -> None:
    run = make_run(code_shards, tmp_path / "run", "next_scale")
    with pytest.raises(UserError, match="has learned its scales"):
        resized(run, (9, 16, 16))
