"""Forecast: a few files say what all will cost, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.cli import main
from pipeline.config import BuildConfig, SelectSettings, TokenizeSettings
from pipeline.encode import code_recipe
from pipeline.forecast import forecast
from pipeline.sources.listing import list_sources
from tokenizer.settings import save_settings


@pytest.fixture
def config(
    write_film: Callable[[Path, int], Path], random_tokenizer: Path, tmp_path: Path
) -> BuildConfig:
    for seed in range(12):
        write_film(tmp_path / "videos" / f"{seed}.mp4", seed)
    return BuildConfig(
        sources=(str(tmp_path / "videos"),),
        out=str(tmp_path / "data"),
        executor="inline",
        num_cpus=2,
        select=SelectSettings(drop={}, val_share=0.0),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer), samples_per_shard=5, batch_size=4
        ),
    )


@pytest.mark.slow
def test_a_sample_predicts_clips_shards_and_bytes_of_the_build(config: BuildConfig) -> None:
    files = list_sources(config.sources)
    recipe = code_recipe(Path(str(config.tokenize.tokenizer)), config.tokenize)
    made = forecast(config, files, 6, [recipe], 2)
    assert not Path(config.out).exists()
    build(config)
    declared = json.loads((Path(config.out) / "shards.json").read_text())["shards"]
    assert made.num_clips == pytest.approx(12, rel=0.25)
    assert made.num_shards == pytest.approx(len(declared), abs=1)
    actual = sum(shard["size_bytes"] for shard in declared)
    assert made.shard_bytes == pytest.approx(actual, rel=0.5)
    assert set(made.cpu_hours) == {"plan", "annotate", "decode", "encode"}
    assert made.wall_hours["decode"] == pytest.approx(made.cpu_hours["decode"] / 2)
    assert made.bottleneck in made.cpu_hours


def test_all_files_predict_the_clips_exactly(config: BuildConfig) -> None:
    made = forecast(config, list_sources(config.sources), 100, (), 2)
    assert made.num_sampled == made.num_files == 12
    assert (made.num_clips, made.num_shards) == (12, 3)
    assert "encode" not in made.cpu_hours


def test_the_command_prints_a_table_and_writes_nothing(
    config: BuildConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_tokenizer = replace(config.tokenize, tokenizer=None)
    save_settings(replace(config, tokenize=no_tokenizer), tmp_path / "build.yaml")
    assert main(["build", str(tmp_path / "build.yaml"), "--dry-run", "3"]) == 0
    shown = capsys.readouterr().out
    assert "measured 3 of 12 files" in shown
    assert "<- bottleneck" in shown
    assert "no tokenizer yet" in shown
    assert not Path(config.out).exists()
    assert main(["build", str(tmp_path / "build.yaml"), "--dry-run", "0"]) == 2
    assert "--dry-run (0) must be at least 1" in capsys.readouterr().err
