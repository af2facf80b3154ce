"""Evaluation of a folder of samples: its clips are judged, and only a finished one of this run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.test_evaluate import BUCKET, CONFIG, Project, make_project
from tokenizer.settings import UserError
from training import evaluate as evaluation
from training.__main__ import main
from training.config import SampleConfig
from training.evaluate import evaluate
from training.kept_samples import KeptSamples
from training.likeness import copy_share
from training.pictures import read_metadata
from training.run import open_run
from training.sample_ranks import write_samples

SETTINGS = SampleConfig(num=6, videos=0, seed=3, temperature=0.7, device="cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"), "text")


@pytest.fixture(scope="module")
def samples(project: Project) -> Path:
    return write_samples(project.run, replace(SETTINGS, out=str(project.run / "kept"))).path


@pytest.mark.slow
def test_the_clips_of_the_folder_are_judged_and_none_is_sampled(
    project: Project, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "generate", None)
    config = replace(CONFIG, samples=str(samples), num_samples=None)
    report = evaluate(project.run, config)
    assert (report["num_samples"], report["sample_seconds"]) == (6, None)
    assert set(report["accuracy"]["samples"]) == {"class", "motion", "color"}
    said = report["made_by"]["settings"]
    assert (said["samples"], said["sample"]["temperature"]) == (str(samples), 0.7)
    assert read_metadata(project.run / "nearest.png")["seed"] == "3"
    chunks = json.loads((samples / "samples.json").read_text())["chunks"]
    codes = np.concatenate([np.load(samples / name)["codes"] for name in chunks])
    assert report["distinct_share"] == len(np.unique(codes, axis=0)) / 6
    fewer = evaluate(project.run, replace(config, num_samples=4))
    assert fewer["num_samples"] == 4


def test_kept_clips_are_those_of_the_codes_in_the_folder(project: Project, samples: Path) -> None:
    run = open_run(project.run)
    kept = KeptSamples.of(samples, run)
    made = kept.decoded()
    plan = json.loads((samples / "plan.json").read_text())
    assert (kept.bucket, made.prompts) == (BUCKET, plan["prompts"])
    assert made.frames.shape == (6, 9, 64, 64, 3)
    first = np.load(samples / "codes" / "000000-000004.npz")["codes"]
    assert copy_share(first, made.codes) == 1.0
    assert made.num_steps == json.loads((samples / "samples.json").read_text())["num_steps"]


def without_a_chunk(folder: Path) -> None:
    (folder / "codes" / "000004-000006.npz").unlink()


def without_the_end(folder: Path) -> None:
    (folder / "samples.json").unlink()


def of_other_weights(folder: Path) -> None:
    change_plan(folder, model="0" * 64, step=9)


def of_another_shape(folder: Path) -> None:
    change_plan(folder, bucket="t17_h64_w64")


def of_other_prompts(folder: Path) -> None:
    change_plan(folder, prompts=["a red elephant"])


def with_other_codes(folder: Path) -> None:
    path = folder / "codes" / "000000-000004.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "codes": arrays["codes"] + 60000})


def with_damage(folder: Path) -> None:
    (folder / "codes" / "000000-000004.npz").write_bytes(b"no zip")


def change_plan(folder: Path, **changes: object) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            shutil.rmtree,
            "no folder of samples (no plan.json); `tessera sample RUN --out DIR` makes",
        ),
        (without_a_chunk, "not finished, 2 of 6 samples are missing; run the same"),
        (without_the_end, "not finished, 0 of 6 samples are missing; run the same"),
        (of_other_weights, "by other weights of this one (000000000000 of step 9, not"),
        (of_another_shape, "clips of shape t17_h64_w64, and the run was trained on"),
        (of_other_prompts, "6 of its 6 samples should show: 'a red elephant' is no prompt"),
        (with_other_codes, "they are another tokenizer's"),
        (with_damage, "codes/000000-000004.npz: damaged"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    change: Callable[[Path], None], message: str, project: Project, samples: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(samples, tmp_path / "samples")
    change(folder)
    with pytest.raises(UserError) as raised:
        evaluate(project.run, replace(CONFIG, samples=str(folder)))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_clips_than_there_are_and_settings_of_new_ones_are_refused(
    project: Project, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", str(project.run), "--samples", str(samples)]
    for more, message in (
        (["--num_samples", "7"], "holds 6 samples, fewer than num_samples (7)"),
        (["--sample.top_k", "3"], "--sample.top_k says how clips are sampled, and those of"),
    ):
        assert main([*line, *more]) == 2
        assert message in capsys.readouterr().err
