"""Wrong command lines of training: one line that says what and where, before anything is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main as whole
from tests.test_trainer import generator_run
from tokenizer.settings import UserError
from training.__main__ import main
from training.block_config import BlockConfig
from training.config import ConditionConfig, MethodConfig, ModelConfig
from training.launch import local
from training.tasks.generator import GeneratorTask


@pytest.fixture(scope="module")
def place(grid_shards: Path, code_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with datasets, runs of several kinds, damaged ones and pictures."""
    place = tmp_path_factory.mktemp("wrong")
    (place / "grid").symlink_to(grid_shards)
    (place / "codes").symlink_to(code_shards)
    rope = ModelConfig(width=16, depth=2, heads=2, block=BlockConfig(position="rope"))
    for name, kind, method, model in (
        ("arpg", "class", "arpg", rope),
        ("raster", "text", "raster", None),
        ("nar", "none", "nar", None),
    ):
        changes = {
            "method": MethodConfig(name=method),  # type: ignore[arg-type]
            "condition": ConditionConfig(kind=kind),  # type: ignore[arg-type]
        } | ({} if model is None else {"model": model})
        local.launch(generator_run(grid_shards, place / name, 1, **changes))
    for name in ("truncated", "unfinished"):
        shutil.copytree(place / "arpg", place / name)
    (weights,) = (place / "truncated" / "checkpoints").rglob("rank_00000.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    shutil.rmtree(place / "unfinished" / "checkpoints")
    for name, shape in (("photo", (16, 16)), ("wide", (30, 90)), ("white", (16, 16))):
        Image.fromarray(np.full(shape, 255, np.uint8)).save(place / f"{name}.png")
    (place / "note.png").write_text("no picture")
    return place


SAMPLE = [
    ("sample nowhere", "nowhere: not a run folder (no run.json); `tessera train` makes one"),
    ("sample photo.png", "photo.png: not a run folder"),
    ("sample unfinished", "no finished checkpoint yet; run `tessera train` on it first"),
    ("sample truncated", "index.json: damaged checkpoint (tensors of"),
    ("sample arpg --prompts [elephant]", "class 'elephant' was not in the training data; known"),
    ("sample raster --prompts ['a red elephant']", "prompt word 'elephant'"),
    ("sample raster --prompts ['a red seven moving left a red seven']", "this run takes"),
    ("sample raster --prompts ['']", "prompt '' has no words"),
    ("sample arpg --prompts ['']", "class '' was not in the training data"),
    ("sample nar --prompts [seven]", "trained without a condition; leave them out"),
    ("sample nar --guidance.scale 2", "needs a conditional model"),
    ("sample arpg --text_weights w.pt", "are for condition.kind clip_text; this run has class"),
    ("sample arpg --num 0", "num (0) must be at least 1"),
    ("sample arpg --num two", "num must be int"),
    ("sample arpg --ranks 0", "ranks (0) must be at least 1"),
    ("sample arpg --fps 0", "fps (0.0) must be positive"),
    ("sample arpg --top_p 0", "top_p (0.0) must lie in (0, 1]"),
    ("sample arpg --top_p .nan", "top_p (nan) must be a finite number"),
    ("sample arpg --temperature nan", "temperature (nan) must be a finite number"),
    ("sample arpg --temperature .inf", "temperature (inf) must be a finite number"),
    ("sample arpg --guidance.scale nan", "guidance.scale (nan) must be a finite number"),
    ("sample arpg --guidance.end 1.5", "must be 0 <= start < end <= 1"),
    ("sample arpg --guidance.kind lineer", "did you mean 'linear'?"),
    ("sample arpg --num_steps 9", "num_steps (9) is more than the 8 cells"),
    ("sample raster --num_steps 2", "num_steps and sizes are for random orders"),
    ("sample arpg --bucket t9", "bucket 't9': this run makes t5_h16_w16"),
    ("sample arpg --shape [6,16,16]", "nearest are 5 and 9"),
    ("sample arpg --shape [5,17,16]", "height (17) must be a multiple of 8; nearest are 16 and 24"),
    ("sample nar --shape [9,16,16]", "train with --model.block.position rope"),
    ("sample arpg --out photo.png", "photo.png: cannot be written"),
    ("sample arpg --temperatur 1", "unknown flag --temperatur; did you mean --temperature?"),
    ("sample", "the following arguments are required: RUN"),
]
EDIT = [
    ("edit nowhere photo.png", "not a run folder"),
    ("edit arpg .", "a folder; give a video, an image or the key of a sample"),
    ("edit arpg note.png", "videos are read by the pipeline"),
    ("edit arpg photo.png --hide [0,0,99,8]", "must lie inside the clip, which has 16 x 16"),
    ("edit arpg photo.png --hide [8,8,0,0]", "top < bottom and left < right"),
    ("edit arpg photo.png --mask white.png", "nothing would be kept: `tessera sample` makes"),
    ("edit arpg photo.png --mask wide.png", "a mask of 30 x 90 pixels does not lie on a source"),
    ("edit arpg photo.png --mask note.png", "note.png: not an image that can be read"),
    ("edit arpg photo.png --mask none.png", "none.png: no such file"),
    ("edit arpg photo.png --start_seconds .nan", "start_seconds (nan) must be a finite number"),
    ("edit nar photo.png --prompts [seven]", "trained without a condition"),
    ("edit arpg KEY --data codes", "its codes are of another tokenizer than the run's"),
    ("edit arpg KEY --data nowhere", "--data names its dataset (nowhere is not there)"),
]
TRAIN = [
    ("train --data grid", "out is required"),
    ("train demmo --data grid --out new", "not a preset; presets: demo"),
    ("train --model par-x --data grid --out new", "did you mean par-xl?"),
    ("train --data nowhere --out new", "nowhere: no such dataset folder"),
    ("train --data codes --out new --method.name nar", "order 'nar' needs codes on one grid"),
    ("train --data grid --out new --method.name parr", "did you mean 'par'?"),
    (
        "train --data grid --out new --method.name par --method.regions [1,3,2]",
        "3 regions do not divide 2 cells of axis h; it may be 1, 2",
    ),
    (
        "train --data grid --out new --method.name arpg --method.num_steps 9",
        "num_steps (9) is more than the 8 cells",
    ),
    ("train --data grid --out new --data.token_set zz", "has no token set 'zz'; it has codes"),
    ("train --data grid --out new --data.buckets [t9]", "there are t5_h16_w16, t1_h16_w16"),
    ("train --data grid --out new --optimizer.learning_rate .nan", "must be a finite number"),
    ("train --data grid --out arpg --method.name raster", "made with another method (arpg)"),
]
OTHERS = [
    ("evaluate nowhere", "not a run folder"),
    ("evaluate arpg --data codes", "made by another tokenizer than the run's"),
    ("evaluate arpg --sample.num_steps 9", "num_steps (9) is more than the 8 cells"),
    ("evaluate raster --sample.num_steps 2", "num_steps and sizes are for random orders"),
    ("evaluate arpg --sample.top_p 2", "sample.top_p (2.0) must lie in (0, 1]"),
    ("orders show narr", "did you mean 'nar'?"),
    ("orders show par --shape 5x15x16", "2 regions do not divide 15 cells of axis h"),
    ("orders show arpg --shape 1x2x2 --method.num_steps 5", "more than the 4 cells"),
    ("orders show nar -o photo.png/nar.png", "cannot be written"),
    ("orders show next_scale --schedule var-256 --ratio 0", "must lie in [0.1, 10]"),
]


@pytest.mark.parametrize(("line", "message"), [*SAMPLE, *EDIT, *TRAIN, *OTHERS])
def test_a_wrong_command_is_one_line_and_makes_nothing(
    line: str,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert exit_code(main, split(line)) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert found.err.count("\n") == 1
    assert not found.out
    assert sorted(place.rglob("*")) == before


def test_the_whole_command_names_the_flag_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(whole, ["train", "--methd.name", "nar"]) == 2
    assert "unknown flag --methd.name; did you mean --method.name?" in capsys.readouterr().err


def test_fewer_samples_than_ranks_are_made_all_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples"
    flags = ["--num", "2", "--ranks", "5", "--videos", "0", "--out", str(out)]
    assert main(["sample", str(place / "arpg"), *flags]) == 0
    assert "2 clips" in capsys.readouterr().out


def test_codes_outside_of_the_codebook_are_refused(grid_shards: Path, tmp_path: Path) -> None:
    task = GeneratorTask(generator_run(grid_shards, tmp_path / "run"), "cpu")
    batch = task.loader.batch(0)
    with pytest.raises(UserError, match=r"must lie in \[0, 16\): they are another tokenizer's"):
        task.count(replace(batch, arrays=batch.arrays + 16))


def exit_code(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """What the process would end with."""
    try:
        return command(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def split(line: str) -> list[str]:
    """Words at spaces, those in brackets together."""
    words: list[str] = []
    for word in line.split(" "):
        if words and words[-1].startswith("[") and not words[-1].endswith("]"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words
