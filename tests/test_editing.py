"""Edits of clips by a run: every kind of source, kept pixels, files, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.decode.opening import opening_frames
from pipeline.shards import open_dataset
from tests.conftest import write_mp4
from tests.test_trainer import generator_run
from tokenizer.settings import UserError
from training.config import ConditionConfig, GuidanceConfig, MethodConfig
from training.edit_config import EditConfig
from training.edit_source import EditSource, open_source
from training.editing import Edited, edit
from training.known_region import known_cells
from training.launch import local
from training.pictures import read_metadata
from training.run import OpenedRun, open_run

BUCKET = "t5_h16_w16"
PLAIN = EditConfig(guidance=GuidanceConfig(scale=1.0), device="cpu")


def make_run(data: Path, out: Path, method: str, kind: str = "none") -> OpenedRun:
    changes = {
        "method": MethodConfig(name=method),  # type: ignore[arg-type]
        "condition": ConditionConfig(kind=kind),  # type: ignore[arg-type]
    }
    local.launch(generator_run(data, out, 1, **changes))
    return open_run(out)


@pytest.fixture(scope="module")
def run_dir(code_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edit") / "run"
    make_run(code_shards, out, "next_scale", "class")
    return out


@pytest.fixture(scope="module")
def run(run_dir: Path) -> OpenedRun:
    return open_run(run_dir)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def edited(run: OpenedRun, frames: np.ndarray, **changes: Any) -> Edited:
    return edit(run, EditSource(name="clip", frames=frames), replace(PLAIN, **changes))


@pytest.mark.parametrize("method", ["raster", "par", "nar", "arpg"])
def test_known_cells_come_back_unchanged_for_every_method_of_grids(
    method: str, grid_shards: Path, tmp_path: Path, frames: np.ndarray
) -> None:
    run = make_run(grid_shards, tmp_path / "run", method)
    found = edited(run, frames, hide=(0, 0, 8, 16), num=2)
    cells = known_cells(run.schedule(BUCKET), found.known, 4)
    own = run.tokenizer.encode(torch.from_numpy(np.where(found.known[..., None], frames, 0))[None])
    assert cells.sum() == found.num_given == 4
    assert found.results.codes.shape == (2, 8)
    assert (found.results.codes[0][cells] == found.results.codes[1][cells]).all()
    assert own.shape[1] == 8


def test_kept_pixels_are_the_sources_unless_not_pasted(run: OpenedRun, frames: np.ndarray) -> None:
    pasted = edited(run, frames, first_frames=1, num=2)
    assert (pasted.results.frames[:, 0] == frames[0]).all()
    decoded = edited(run, frames, first_frames=1, num=2, paste=False)
    assert (decoded.results.codes == pasted.results.codes).all()
    assert (decoded.results.frames[:, 0] != frames[0]).any()
    assert (decoded.results.frames[:, 1:] == pasted.results.frames[:, 1:]).all()


def test_hidden_pixels_do_not_matter(run: OpenedRun, frames: np.ndarray) -> None:
    other = frames.copy()
    other[:, :8] = 255 - other[:, :8]
    found, expected = (edited(run, each, hide=(0, 0, 8, 16)) for each in (other, frames))
    assert (found.results.codes == expected.results.codes).all()
    assert (found.results.frames == expected.results.frames).all()


def test_a_continuation_keeps_the_codes_of_its_beginning(
    run: OpenedRun, frames: np.ndarray
) -> None:
    found = edited(run, frames[:1], num=3)
    image = run.tokenizer.encode(torch.from_numpy(frames[:1])[None])[0].numpy()
    assert (found.results.codes[:, : len(image)] == image).all()
    assert found.num_given == len(image)


def test_a_sample_of_the_dataset_has_its_own_codes_and_prompt(
    run: OpenedRun, code_shards: Path
) -> None:
    samples = open_dataset(code_shards).samples(bucket=BUCKET)
    key = samples.select([3]).names()[0]
    source = open_source(run, key, BUCKET, PLAIN, None)
    assert source.codes is not None
    assert (source.codes == samples.gather([3])[0]).all()
    assert source.prompt == samples.metadata([3])[0]["label"]
    found = edit(run, source, replace(PLAIN, hide=(0, 0, 8, 8)))
    assert found.results.prompts == [source.prompt]
    cells = known_cells(run.schedule(BUCKET), found.known, 4)
    assert (found.results.codes[0][cells] == source.codes[cells]).all()


def test_the_command_edits_a_video_and_writes_results_picture_and_record(
    run_dir: Path, tmp_path: Path, frames: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames.repeat(3, axis=0), fps=24)
    mask = np.zeros((16, 16), np.uint8)
    mask[8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    arguments = ["--mask", str(tmp_path / "mask.png"), "--prompts", '["1", "2"]', "--num", "3"]
    assert main(["edit", str(run_dir), str(video), *arguments, "--out", str(out)]) == 0
    assert "3 results, 4 of 10 codes given" in capsys.readouterr().out
    record = json.loads((out / "edit.json").read_text())
    assert [each["prompt"] for each in record["results"]] == ["1", "2", "1"]
    for each in record["results"]:
        assert read_metadata(out / each["file"])["source"] == "clip"
    assert read_metadata(out / "edit.png")["generated"] == "true"


def test_a_video_is_read_at_the_rate_asked_for_and_ends_where_it_ends(
    tmp_path: Path, frames: np.ndarray
) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames.repeat(3, axis=0), fps=24)
    whole = opening_frames(video, 9, 16, 16, 8.0, 0.0)
    assert whole.shape == (5, 16, 16, 3)
    later = opening_frames(video, 9, 16, 16, 8.0, 0.25)
    assert (later == whole[2:]).all()
    with pytest.raises(UserError, match=r"start_seconds \(2\) is behind its end"):
        opening_frames(video, 9, 16, 16, 8.0, 2.0)


@pytest.mark.parametrize(("method", "late"), [("raster", 2), ("nar", 2), ("arpg", 0)])
def test_the_command_says_which_codes_a_fixed_order_does_not_see(
    method: str,
    late: int,
    grid_shards: Path,
    tmp_path: Path,
    frames: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(grid_shards, tmp_path / "run", method)
    capsys.readouterr()
    Image.fromarray(frames[0]).save(tmp_path / "photo.png")
    command = ["edit", str(tmp_path / "run"), str(tmp_path / "photo.png")]
    assert main([*command, "--hide", "[0, 8, 8, 16]"]) == 0
    said = capsys.readouterr().err
    expected = f"note: {late} of the 3 given codes come late in the order of {method}"
    assert (expected in said) == (late > 0)
    assert said.count("\n") == (late > 0)
    assert main(command) == 0
    assert ("note" in capsys.readouterr().err) == (method == "nar")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first_frames", "3"], "nearest are 1 and 5"),
        (["--bucket", "t9"], "this run makes t5_h16_w16"),
        (["--hide", "[0, 0, 99, 4]"], "must lie inside the clip"),
        (["--keep", "[0, 0, 3, 3]"], "no cell would stay"),
        (["--prompts", '["elephant"]', "--hide", "[0, 0, 8, 8]"], "elephant"),
        (["--mask", "/nowhere.png"], "/nowhere.png"),
        ([], "would be kept"),
    ],
)
def test_wrong_edits_are_one_line(
    run_dir: Path,
    code_shards: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    key = open_dataset(code_shards).samples(bucket=BUCKET).select([0]).names()[0]
    assert main(["edit", str(run_dir), key, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_source_that_is_not_there_is_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", str(run_dir), "nothing", "--first_frames", "1"]) == 2
    assert "neither a file nor the key of a sample" in capsys.readouterr().err
