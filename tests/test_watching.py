"""What there is to see of a run: losses by part, held-out clips, previews, speed, traces."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.shards import open_dataset
from tests.checkpoints import checkpoint_tensors
from tests.conftest import write_random_shards
from tests.generators import GRID, LARGER, PYRAMID, VARIANTS
from tests.loops import run_on_rank, small_run
from tests.ranks import Ranks
from tests.test_tokenizer_task import everything, pictures_of
from tokenizer.settings import UserError
from training.config import ConditionConfig, DataConfig
from training.launch import local
from training.loss_parts import loss_by_part
from training.method_config import MethodConfig
from training.methods import METHODS
from training.metrics import read_metrics
from training.run import open_run
from training.teacher_forcing import bits_of

VIDEO = "t5_h16_w16"


@pytest.fixture(scope="module")
def split_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of which some are held out."""
    folder = tmp_path_factory.mktemp("split") / "data"
    return write_random_shards(folder, "codes", num_clips=20, held_out=8)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_losses_of_parts_are_those_of_their_cells(variant: Any) -> None:
    order = METHODS[variant.method.name](variant.schedule, 0, variant.method, True, None).order
    num_cells = variant.schedule.num_tokens
    losses = torch.rand(3, num_cells, generator=torch.Generator().manual_seed(0)).double()
    found = loss_by_part(losses, order)
    for kind in ("loss/scale", "loss/step"):
        parts = [each for name, each in found.items() if name.startswith(kind)]
        if parts:
            assert sum(each.weight for each in parts) == losses.numel()
            total = torch.stack([each.total for each in parts]).sum()
            torch.testing.assert_close(total, losses.sum())
    names = [name for name in found if name.startswith("loss/step")]
    assert len(names) <= 8
    if order.num_steps <= 8 and names:
        digits = len(str(order.num_steps))
        for step in range(1, order.num_steps + 1):
            expected = float(losses[:, order.places(step)].sum())
            assert float(found[f"loss/step_{step:0{digits}d}"].total) == pytest.approx(expected)


def test_names_of_parts() -> None:
    def names(method: str, schedule: Any, **more: Any) -> list[str]:
        config = MethodConfig(name=method, **more)  # type: ignore[arg-type]
        order = METHODS[method](schedule, 0, config, True, None).order
        return list(loss_by_part(torch.zeros(1, schedule.num_tokens), order))

    assert names("next_scale", PYRAMID) == [f"loss/scale_{number}" for number in range(2)]
    assert names("nar", GRID) == [f"loss/step_{number}" for number in range(1, 8)]
    assert names("raster", GRID) == [
        f"loss/step_{first:02d}-{first + 2:02d}" for first in range(1, 25, 3)
    ]
    assert "loss/step_01" not in names("next_scale", LARGER, inner="raster", inner_cells=4)


@pytest.mark.multiprocess
@pytest.mark.parametrize("method", ["next_scale", "arpg"])
def test_the_loss_of_held_out_clips_is_that_of_the_run_that_is_opened(
    method: str, split_shards: Path, grid_split: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """With averaged weights, without dropped captions; as in `bits_of`, on any number of ranks."""
    data = split_shards if method == "next_scale" else grid_split
    run = small_run(
        data,
        tmp_path / "one",
        method=MethodConfig(name=method),  # type: ignore[arg-type]
        trainer={"validate_every": 3, "global_batch_size": 8},
        data=DataConfig(path=str(data)),
        condition=ConditionConfig(kind="class", dropout=0.3),
    )
    local.launch(run)
    two_ranks.run(run_on_rank, replace(run, out=str(tmp_path / "two")))
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one if "held_out/loss" in line] == [3, 6]
    values = [line["held_out/loss"] for line in one if "held_out/loss" in line]
    assert [line["held_out/loss"] for line in two if "held_out/loss" in line] == pytest.approx(
        values, rel=1e-4
    )
    if method == "next_scale":  # random orders are drawn by other keys
        samples = open_dataset(str(data)).samples("val", VIDEO)
        bits = bits_of(open_run(tmp_path / "one"), samples)
        assert values[-1] == pytest.approx(bits.per_code * np.log(2), rel=1e-5)


@pytest.fixture(scope="module")
def grid_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid_split") / "data"
    return write_random_shards(folder, "codes", num_clips=20, scales=(2,), held_out=8)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_looking_at_a_sharded_run_changes_nothing(
    precision: str, split_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """Held-out clips and previews, with averaged weights, between steps and at the end."""
    data = DataConfig(path=str(split_shards))
    quiet = {"precision": precision, "checkpoint_every": 100}
    looking = quiet | {"validate_every": 1, "preview_every": 2, "preview_clips": 2}
    for name, trainer in (("plain", quiet), ("seen", looking)):
        run = small_run(split_shards, tmp_path / name, data=data, trainer=trainer)
        assert [each["step"] for each in two_ranks.run(run_on_rank, run)] == [6, 6]
    ours, theirs = (
        checkpoint_tensors(tmp_path / name / "checkpoints" / "step_00000006")
        for name in ("seen", "plain")
    )
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_held_out_clips_are_computed_in_parts_too(split_shards: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(split_shards))
    trainer = {"validate_every": 6, "global_batch_size": 8}
    for name, most in (("whole", None), ("parts", 3)):
        cut = trainer | {"micro_batch_size": most}
        local.launch(small_run(split_shards, tmp_path / name, data=data, trainer=cut))
    whole, parts = (read_metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert parts["held_out/loss"] == pytest.approx(whole["held_out/loss"], rel=1e-4)


def test_half_a_line_of_metrics_is_forgotten(code_shards: Path, tmp_path: Path) -> None:
    run = small_run(code_shards, tmp_path / "run")
    local.launch(run)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    local.launch(replace(run, trainer=replace(run.trainer, num_steps=7)))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_held_out_losses_of_a_tokenizer_change_nothing(pixel_shards: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pixel_shards, tmp_path / "data")
    plain = everything(data, tmp_path / "plain")
    local.launch(plain)
    trainer = replace(plain.trainer, validate_every=2)
    checked = replace(
        plain,
        out=str(tmp_path / "checked"),
        result=str(tmp_path / "checked" / "tokenizer"),
        trainer=trainer,
        data=replace(plain.data, validation_split="train"),
    )
    local.launch(checked)
    first, second = (read_metrics(tmp_path / name) for name in ("plain", "checked"))
    assert [line["loss"] for line in first] == [line["loss"] for line in second]
    assert [line["step"] for line in second if "held_out/psnr" in line] == [2, 4, 6]


@pytest.mark.multiprocess
def test_a_preview_shows_what_the_run_would_sample_then(
    code_shards: Path, tmp_path: Path, two_ranks: Ranks
) -> None:
    """On ranks it is the first one that samples, with weights in one piece."""
    from PIL import Image

    trainer = {"preview_every": 6, "preview_clips": 3, "tensorboard": True}
    for name in ("one", "two"):
        run = small_run(code_shards, tmp_path / name, trainer=trainer)
        if name == "one":
            local.launch(run)
        else:
            two_ranks.run(run_on_rank, run)
        assert pictures_of(tmp_path / name / "tensorboard") == {"samples": [6]}
    sheets = [tmp_path / name / "previews" / "step_00000006.png" for name in ("one", "two")]
    first, second = (np.asarray(Image.open(each)) for each in sheets)
    assert first.shape == second.shape
    assert (first == second).mean() > 0.9  # float32 on one rank and two differs by rounding
    assert "preview_seconds" in read_metrics(tmp_path / "two")[-1]


def test_speed_and_memory_are_told(code_shards: Path, tmp_path: Path) -> None:
    local.launch(small_run(code_shards, tmp_path / "run"))
    for line in read_metrics(tmp_path / "run"):
        assert line["tokens_per_second"] > 0
        assert line["teraflops"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert 0.05 < line["memory_gib"] < 100
        assert "mfu" not in line  # no peak is published of a processor


def test_the_share_of_the_peak_is_of_all_devices(
    code_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.trainer.peak_flops", lambda device, dtype: 1e9)
    local.launch(small_run(code_shards, tmp_path / "run"))
    for line in read_metrics(tmp_path / "run"):
        assert line["mfu"] == pytest.approx(line["teraflops"] * 1e3, rel=1e-4)


@pytest.mark.slow
def test_steps_are_traced_on_request(code_shards: Path, tmp_path: Path) -> None:
    trainer = {"profile_steps": (2, 3)}
    local.launch(small_run(code_shards, tmp_path / "run", trainer=trainer))
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "steps_2_3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {each.get("name") for each in events}
    assert "aten::scaled_dot_product_attention" in names


class _Sent:
    """Stands in for Weights & Biases, which is not installed: what it is told."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.lines: list[dict[str, float]] = []
        self.is_finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes = (name, step_metric)

    def log(self, values: dict[str, float]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.is_finished = True


def test_metrics_go_to_weights_and_biases_where_it_is_installed(
    code_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(code_shards, tmp_path / "run", trainer={"wandb": "lab", "num_steps": 2})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        local.launch(run)
    sent, module = _Sent(), ModuleType("wandb")

    def init(**settings: Any) -> _Sent:
        sent.settings = settings
        return sent

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    local.launch(run)
    assert sent.settings["project"] == "lab"
    assert sent.settings["id"] == (tmp_path / "run" / "wandb_id").read_text()
    assert sent.settings["config"]["num_steps"] == 2
    assert sent.axes == ("*", "step")
    assert sent.lines == read_metrics(tmp_path / "run")
    assert sent.is_finished
