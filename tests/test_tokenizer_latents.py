"""`tessera tokenizer latents`, and what `tokenizer train` measures at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.shards import DamagedSample, open_dataset
from tests.conftest import tiny_tokenizer
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.latents import read_statistics
from tokenizer.model import signed
from tokenizer.settings import UserError
from training.config import BeginConfig, DataConfig, TokenizerRun
from training.evaluate_config import LatentsConfig
from training.loop_config import TrainerConfig
from training.pixel_clips import batches, spread
from training.tasks.tokenizer import TokenizerTask
from training.tokenizer_latents import measure_folder

BUCKETS = ("t5_h16_w16", "t1_h16_w16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tiny_tokenizer(), tmp_path / "tokenizer", {"file": "from elsewhere.pth"})
    return tmp_path / "tokenizer"


def test_the_command_measures_every_shape_and_info_shows_it(
    folder: Path, pixel_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_tokenizer(folder).fingerprint
    assert main(["tokenizer", "info", str(folder), "--shape", "5", "16", "16"]) == 0
    assert "latents      not measured" in capsys.readouterr().out
    assert main(["tokenizer", "latents", str(folder), "--data", str(pixel_shards)]) == 0
    said = capsys.readouterr().out
    measured = read_statistics(folder)
    assert str(measured) in said
    assert main(["tokenizer", "info", str(folder), "--shape", "5", "16", "16"]) == 0
    assert f"latents      {measured}" in capsys.readouterr().out
    tokenizer = load_tokenizer(folder)
    assert tokenizer.fingerprint == before
    dataset = open_dataset(pixel_shards)
    cells = []
    for samples in dataset.by_bucket("train", BUCKETS).values():
        frames = torch.from_numpy(samples.gather(np.arange(len(samples))))
        cells.append(tokenizer.encode_latents(signed(frames)).movedim(1, 0).flatten(1))
    values = torch.cat(cells, dim=1).double()
    assert measured.num_values == values.shape[1]
    assert measured.mean == pytest.approx(values.mean(dim=1).tolist(), abs=1e-5)
    assert measured.std == pytest.approx(values.std(dim=1, correction=0).tolist(), rel=1e-5)


def test_training_measures_what_the_command_does(pixel_shards: Path, tmp_path: Path) -> None:
    run = TokenizerRun(
        out=str(tmp_path),
        result=str(tmp_path / "tokenizer"),
        data=DataConfig(path=str(pixel_shards), buckets=BUCKETS),
        begin=BeginConfig(clips=0),
        tokenizer=tiny_tokenizer().config,
        trainer=TrainerConfig(num_steps=1, global_batch_size=2, device="cpu"),
    )
    task = TokenizerTask(run, "cpu")
    task.finish(task.module, tmp_path)
    at_the_end = read_statistics(tmp_path / "tokenizer")
    assert measure_folder(tmp_path, pixel_shards, LatentsConfig(device="cpu")) == at_the_end


def test_a_wrong_tokenizer_is_named_before_pixels_are_made(folder: Path) -> None:
    def never(data: Path) -> Path:
        raise AssertionError("pixels were made for nothing")

    with pytest.raises(UserError, match="/nowhere: no tokenizer here"):
        measure_folder("/nowhere", "/no/data", pixels_of=never)
    with pytest.raises(UserError, match="/no/data"):
        measure_folder(folder, "/no/data")


def test_a_number_of_clips_is_spread_evenly_and_is_the_same_each_time() -> None:
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 4).tolist() == spread(3, None).tolist() == [0, 1, 2]
    assert spread(0, 4).tolist() == []


def test_damaged_clips_stop_or_are_left_out_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def gather(self, places: np.ndarray) -> np.ndarray:
            if 3 in places:
                raise DamagedSample("k", "s.tar", 0, 3, "is damaged")
            return places

    def places(skip_damaged: bool) -> list[int]:
        found = batches(Broken(), np.arange(7), 2, skip_damaged)  # type: ignore[arg-type]
        return [int(each) for _, part in found for each in part]

    assert places(skip_damaged=True) == [0, 1, 2, 4, 5, 6]
    with pytest.raises(DamagedSample):
        places(skip_damaged=False)
