"""Folders of samples: exactly as many as asked for, the same ones whoever makes them and when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_launch import small_run
from tokenizer.settings import UserError
from training import sample_ranks
from training.config import ConditionConfig, GuidanceConfig, SampleConfig
from training.launch import local
from training.method_config import MethodConfig
from training.pictures import read_metadata
from training.run import OpenedRun, open_run
from training.sample_folder import SampleFolder
from training.sample_plan import Plan
from training.sample_ranks import write_samples
from training.sampler import Sampling
from training.samples import generate

SETTINGS = SampleConfig(num=11, batch_size=3, videos=0, device="cpu")
PROMPTS = ("a red three moving left", "a green seven")


@pytest.fixture(scope="module")
def run(code_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "run"
    local.launch(small_run(code_shards, folder))
    return folder


def chunks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "codes").iterdir())}


def columns(folder: Path) -> dict[str, np.ndarray]:
    parts = [
        np.load(folder / name)
        for name in json.loads((folder / "samples.json").read_text())["chunks"]
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sampled(run: Path, out: Path, settings: SampleConfig = SETTINGS) -> Path:
    write_samples(run, replace(settings, out=str(out)))
    return out


def test_there_are_exactly_as_many_spread_evenly_over_the_prompts(
    run: Path, tmp_path: Path
) -> None:
    found = columns(sampled(run, tmp_path / "out"))
    assert found["number"].tolist() == list(range(11))
    assert found["codes"].shape == (11, open_run(run).schedule("t5_h16_w16").num_tokens)
    counts = np.bincount(found["prompt"])
    assert counts.max() - counts.min() <= 1
    report = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert len(report["prompts"]) == len(counts)


def test_a_sample_is_that_of_its_number_whatever_the_size_of_a_chunk(
    run: Path, tmp_path: Path
) -> None:
    small = columns(sampled(run, tmp_path / "small"))
    large = columns(sampled(run, tmp_path / "large", replace(SETTINGS, batch_size=32)))
    assert all(np.array_equal(small[name], large[name]) for name in small)
    opened = open_run(run)
    prompts = json.loads((tmp_path / "small" / "samples.json").read_text())["prompts"]
    of_number = [prompts[number % len(prompts)] for number in range(11)]
    assert np.array_equal(generate(opened, of_number, SETTINGS).codes, small["codes"])


def test_sampling_that_was_interrupted_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chunks(sampled(run, tmp_path / "whole"))
    written, real = [], SampleFolder.write_codes

    def dies_at_the_third(self: SampleFolder, chunk: range, codes: np.ndarray) -> None:
        written.append(chunk)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(self, chunk, codes)

    with monkeypatch.context() as patch:
        patch.setattr(SampleFolder, "write_codes", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            sampled(run, tmp_path / "killed")
    there = chunks(tmp_path / "killed")
    assert len(there) == 2
    assert not (tmp_path / "killed" / "samples.json").exists()
    (tmp_path / "killed" / "codes" / ".000006-000009.npz.99.partial").write_bytes(b"half")
    assert chunks(sampled(run, tmp_path / "killed")) == whole
    assert there.items() <= whole.items()


@pytest.mark.multiprocess
def test_two_ranks_killed_and_started_again_make_the_bytes_of_one(
    run: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, num=120, batch_size=2, videos=4)
    whole = sampled(run, tmp_path / "one", settings)
    out = tmp_path / "two"
    command = [sys.executable, "-m", "training", "sample", str(run), "--out", str(out)]
    command += ["--num=120", "--batch_size=2", "--videos=4", "--ranks=2", "--device=cpu"]
    started = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (out / "codes").exists() or len(chunks(out)) < 3:
        assert started.poll() is None
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (out / "samples.json").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert chunks(out) == chunks(whole)
    videos = [sorted(path.name for path in each.glob("0*.mp4")) for each in (out, whole)]
    assert videos[0] == videos[1]
    assert len(videos[0]) == 4


def test_more_samples_come_behind_those_that_are_there(run: Path, tmp_path: Path) -> None:
    few = columns(sampled(run, tmp_path / "out", replace(SETTINGS, num=7)))
    more = columns(sampled(run, tmp_path / "out"))
    assert np.array_equal(more["codes"][:7], few["codes"])
    assert sorted(chunks(tmp_path / "out")) == [
        f"{start:06d}-{min(start + 3, 11):06d}.npz" for start in range(0, 11, 3)
    ]


def test_samples_are_computed_in_the_same_batches_however_many_there_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: dict[int, list[str | None]] = {}
    real = sample_ranks.sample_batch

    def noted(run: OpenedRun, prompts: Any, numbers: range, *rest: Any) -> Sampling:
        assert computed.setdefault(numbers.start, prompts) == prompts
        batches.add((numbers.start, numbers.stop))
        return real(run, prompts, numbers, *rest)

    monkeypatch.setattr(sample_ranks, "sample_batch", noted)
    settings = replace(SETTINGS, prompts=PROMPTS, batch_size=16)
    for num, stops in ((3, [4]), (9, [4, 8, 16]), (49, [4, 8, 16, 32, 48, 64])):
        batches = set[tuple[int, int]]()
        found = columns(sampled(run, tmp_path / str(num), replace(settings, num=num)))
        assert batches == set(zip([0, *stops], stops))
        assert found["number"].tolist() == list(range(num))
    grown = columns(sampled(run, tmp_path / "9", replace(settings, num=49)))
    assert np.array_equal(grown["codes"], found["codes"])
    assert chunks(tmp_path / "9") == chunks(tmp_path / "49")


def test_on_a_gpu_every_batch_is_whole(run: Path) -> None:
    plan = Plan.of(open_run(run), replace(SETTINGS, prompts=PROMPTS), "cuda")
    assert plan.batches == [range(start, start + 3) for start in range(0, 11, 3)]
    assert plan.chunks[-1] == range(9, 11)


def test_more_samples_may_come_with_more_of_the_captions(run: Path, tmp_path: Path) -> None:
    few = columns(sampled(run, tmp_path / "out", replace(SETTINGS, num=1)))
    more = columns(sampled(run, tmp_path / "out"))
    assert np.array_equal(more["codes"][:1], few["codes"])
    assert more["prompt"].tolist()[:3] == [0, 1, 0]


def test_videos_can_be_asked_for_later(run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "out")
    before = chunks(out)
    assert not list(out.glob("0*.*"))
    sampled(run, out, replace(SETTINGS, videos=5))
    assert [path.name[:6] for path in sorted(out.glob("0*.*"))] == [f"{n:06d}" for n in range(5)]
    assert chunks(out) == before


def test_counted_samples_are_never_replaced_and_others_are(run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "out", replace(SETTINGS, num=None, max_prompts=2, videos=2))
    other = replace(SETTINGS, seed=1, videos=0)
    sampled(run, out, other)
    assert not list(out.glob("0*.*"))
    guided = replace(other, guidance=GuidanceConfig(scale=3.0))
    for wrong, difference in (
        (SETTINGS, "seed 1, not 0"),
        (replace(other, num=3), "num 11, not 3"),
        (replace(other, top_k=2, temperature=0.5), r"temperature 1\.0, not 0\.5; top_k 0, not 2"),
        (guided, r"guidance\.scale 2\.0, not 3\.0"),
        (replace(other, prompts=PROMPTS), "prompt '.*' for sample 0, not 'a red three moving left"),
    ):
        with pytest.raises(UserError, match=f"holds 11 samples, made with {difference}"):
            sampled(run, out, wrong)
    assert len(columns(out)["number"]) == 11
    prompts = tuple(json.loads((out / "samples.json").read_text())["prompts"])
    sampled(run, out, replace(other, num=None, prompts=prompts * 6))
    with pytest.raises(UserError, match="seed 1, not 2"):
        sampled(run, out, replace(other, num=None, prompts=prompts * 6, seed=2))


def test_another_frame_rate_is_refused_only_where_there_are_videos(
    run: Path, tmp_path: Path
) -> None:
    out = sampled(run, tmp_path / "out")
    before = chunks(out)
    sampled(run, out, replace(SETTINGS, fps=12.0, videos=2))
    assert chunks(out) == before
    with pytest.raises(UserError, match=r"made with fps 12\.0, not 8\.0; give another folder"):
        sampled(run, out, replace(SETTINGS, videos=2))


def test_all_classes_are_sampled_where_a_number_is_asked_for(
    code_shards: Path, tmp_path: Path
) -> None:
    by_class = replace(
        small_run(code_shards, tmp_path / "run"), condition=ConditionConfig(kind="class")
    )
    local.launch(by_class)
    out = sampled(tmp_path / "run", tmp_path / "out")
    names = open_run(tmp_path / "run").vocabulary.names
    assert json.loads((out / "samples.json").read_text())["prompts"] == list(names)


def test_streamed_frames_are_there_before_the_clip_and_change_nothing_of_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, videos=5)
    whole = sampled(run, tmp_path / "whole", settings)
    seen: list[tuple[int, int]] = []
    real = SampleFolder.write_frames

    def noted(self: SampleFolder, number: int, first: int, frames: np.ndarray) -> None:
        assert all(number not in chunk for chunk in self.plan.chunks if self.has_codes(chunk))
        seen.append((number, first))
        real(self, number, first, frames)

    monkeypatch.setattr(SampleFolder, "write_frames", noted)
    out = sampled(run, tmp_path / "out", replace(settings, stream=True))
    assert seen[:6] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert {number for number, _ in seen} == set(range(5))
    assert "first frame of a clip is there after 2 of its 4 steps" in capsys.readouterr().err
    assert chunks(out) == chunks(whole)
    files = [sorted(each.glob("0*.*")) for each in (out, whole)]
    assert [each.read_bytes() for each in files[0]] == [each.read_bytes() for each in files[1]]
    opened = open_run(run)
    codes = torch.from_numpy(columns(out)["codes"][:5].astype(np.int64))
    decoded = opened.tokenizer.decode(codes, opened.schedule("t5_h16_w16")).numpy()
    for frames, folder in zip(decoded, sorted((out / "frames").iterdir()), strict=True):
        shown = [np.array(Image.open(each)) for each in sorted(folder.iterdir())]
        assert np.array_equal(np.stack(shown), frames)
    assert read_metadata(folder / "004.png")["generated"] == "true"


def test_frames_of_other_samples_are_removed_with_them(run: Path, tmp_path: Path) -> None:
    few = replace(SETTINGS, num=None, max_prompts=2, videos=2, stream=True)
    out = sampled(run, tmp_path / "out", few)
    assert len(list((out / "frames").glob("*/*.png"))) == 2 * 5
    mine = out / "frames" / "mine.png"
    mine.write_text("not of the program")
    sampled(run, out, replace(few, seed=1, stream=False))
    assert [each for each in (out / "frames").rglob("*") if each.is_file()] == [mine]


def test_an_order_that_cannot_stream_is_said(
    grid_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_run(grid_shards, tmp_path / "run")
    local.launch(replace(settings, method=MethodConfig(name="arpg", num_steps=3)))
    sampled(tmp_path / "run", tmp_path / "out", replace(SETTINGS, num=2, videos=1, stream=True))
    said = capsys.readouterr().err
    assert "no frame is finished before the last of the 3 steps: all come at once" in said
    assert len(list((tmp_path / "out" / "frames").glob("000000_*/*.png"))) == 5
