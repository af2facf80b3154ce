"""Runs say how their samples are drawn; flags and what a condition allows come first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_launch import small_run
from tokenizer.settings import UserError
from training.config import ConditionConfig, DrawConfig, GuidanceConfig, SampleConfig
from training.edit_config import EditConfig
from training.evaluate_config import EvaluateConfig
from training.launch import local
from training.run import open_run, sample_settings
from training.samples import check_settings

SAFE = DrawConfig(temperature=0.6, top_k=7, guidance=GuidanceConfig(kind="ramp", scale=3.0))


@pytest.fixture(scope="module")
def run(code_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "text"
    settings = small_run(code_shards, out)
    trainer = replace(settings.trainer, num_steps=1)
    condition = ConditionConfig(kind="text")
    local.launch(replace(settings, trainer=trainer, condition=condition, sampling=SAFE))
    return out


def test_a_run_says_how_its_samples_are_drawn(run: Path) -> None:
    drawn = sample_settings(SampleConfig, run, {})
    assert drawn == SampleConfig(
        temperature=0.6, top_k=7, guidance=GuidanceConfig(kind="ramp", scale=3.0)
    )
    assert sample_settings(EvaluateConfig, run, {}, "sample.").sample == drawn
    assert sample_settings(EditConfig, run, {}).temperature == 0.6


def test_flags_come_first(run: Path) -> None:
    flags = {"temperature": "0.9", "guidance.scale": "2", "seed": "4"}
    drawn = sample_settings(SampleConfig, run, flags)
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (0.9, 7, 4)
    assert drawn.guidance == GuidanceConfig(kind="ramp", scale=2.0)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (ConditionConfig(kind="none"), "needs a conditional model"),
        (ConditionConfig(kind="class", dropout=0.0), "this one had condition.dropout 0"),
    ],
    ids=["none", "never dropped"],
)
def test_a_run_that_lacks_one_of_the_two_answers_is_not_guided(
    condition: ConditionConfig, reason: str, code_shards: Path, tmp_path: Path
) -> None:
    settings = small_run(code_shards, tmp_path)
    trainer = replace(settings.trainer, num_steps=1)
    local.launch(replace(settings, trainer=trainer, condition=condition))
    assert sample_settings(SampleConfig, tmp_path, {}).guidance.scale == 1.0
    guided = sample_settings(SampleConfig, tmp_path, {"guidance.scale": 2.0})
    assert guided.guidance.scale == 2.0
    run = open_run(tmp_path)
    check_settings(run, sample_settings(SampleConfig, tmp_path, {}))
    with pytest.raises(UserError, match=reason):
        check_settings(run, guided)


def test_a_wrong_flag_is_said_before_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top_p"):
        sample_settings(SampleConfig, tmp_path, {"top_p": "2"})
    with pytest.raises(UserError, match="not a run folder"):
        sample_settings(SampleConfig, tmp_path, {})
