"""Evaluation of a whole, tiny run: what it reports is measured, and wrong folders are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.digits import caption_of, render_clips
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, TokenSet, dump_declaration, parse_declaration
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError
from training.config import ConditionConfig, DataConfig, GeneratorRun, ModelConfig
from training.evaluate import evaluate
from training.evaluate_config import EvaluateConfig, JudgeConfig
from training.launch.local import launch
from training.likeness import copy_share, nearest
from training.loop_config import TrainerConfig
from training.pictures import read_metadata
from training.real_clips import Clips
from training.run import open_run
from training.unseen_prompts import unseen_prompts
from training.vocabulary import Vocabulary

NUM_TRAIN, NUM_VAL = 20, 8
BUCKET = "t9_h64_w64"
CONFIG = EvaluateConfig(num_samples=6, num_shown=3, judge=JudgeConfig(num_steps=6, batch_size=16))


@dataclass(frozen=True)
class Project:
    """A dataset of codes with its pixels, and a run trained on it."""

    data: Path
    run: Path


def write_dataset(
    root: Path,
    token_set: TokenSet,
    arrays: np.ndarray,
    metadata: list[dict[str, Any]],
    schedule: Any,
) -> None:
    bucket = Bucket(name=BUCKET, num_frames=9, height=64, width=64, schedule=schedule)
    with DatasetWriter(root, [token_set], [bucket]) as writer:
        for number, (array, description) in enumerate(zip(arrays, metadata)):
            split = "train" if number < NUM_TRAIN else "val"
            writer.write(description["key"], {token_set.name: array}, description, split=split)


def make_project(root: Path, kind: str, labelled: bool = True, num_val: int = NUM_VAL) -> Project:
    torch.manual_seed(0)
    narrow = TokenizerConfig(autoencoder=AutoencoderConfig(channels=(8,)))
    tokenizer = Tokenizer(narrow).eval().requires_grad_(False)
    frames, attributes = zip(*render_clips(NUM_TRAIN + num_val, seed=0, fps=8, num_frames=9))
    clips = np.stack(frames)
    metadata = [
        {
            "key": f"clip_{number:04d}",
            "label": each["class"] if labelled else None,
            "caption": caption_of(each),
            "attributes": each if labelled else {},
        }
        for number, each in enumerate(attributes)
    ]
    codes = tokenizer.encode(torch.from_numpy(clips)).numpy().astype(np.uint16)
    schedule = tokenizer.schedule_for(9, 64, 64)
    data = root / "data"
    of_codes = TokenSet(
        name="codes",
        kind="codes",
        dtype="uint16",
        codebook_size=tokenizer.codebook_size,
        tokenizer=tokenizer.fingerprint,
    )
    write_dataset(data, of_codes, codes, metadata, schedule)
    of_frames = TokenSet(name="frames", kind="frames", dtype="uint8")
    write_dataset(data / "pixels", of_frames, clips, metadata, None)
    save_tokenizer(tokenizer, data / "tokenizer")
    run = GeneratorRun(
        out=str(root / "run"),
        data=DataConfig(path=str(data)),
        model=ModelConfig(width=16, depth=1, heads=1),
        condition=ConditionConfig(kind=kind),
        trainer=TrainerConfig(num_steps=2, global_batch_size=4, device="cpu", tensorboard=False),
    )
    launch(run)
    return Project(data, root / "run")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"), "text")


@pytest.fixture(scope="module")
def report(project: Project) -> dict[str, Any]:
    return evaluate(project.run, CONFIG)


def test_the_report_is_written_with_its_summary(project: Project, report: dict[str, Any]) -> None:
    assert json.loads((project.run / "evaluation.json").read_text()) == report
    summary = report["summary"]
    assert summary["method"] == "next_scale"
    assert summary["class_accuracy"] == report["accuracy"]["samples"]["class"]
    assert summary["motion_accuracy"] == report["accuracy"]["samples"]["motion"]
    assert summary["psnr"] == report["psnr"]
    assert 0 <= summary["copy_share"] <= 1


def test_real_reconstructed_and_made_clips_are_judged_alike(report: dict[str, Any]) -> None:
    assert report["num_held_out"] == NUM_VAL
    assert report["num_train"] == NUM_TRAIN
    for group in ("real_held_out", "reconstructions", "samples"):
        assert set(report["accuracy"][group]) == {"class", "motion", "color"}
    assert report["frechet"]["num_clips"] == 6
    assert report["frechet"]["samples"] > 0


def test_bits_are_those_of_the_held_out_clips(project: Project, report: dict[str, Any]) -> None:
    run = open_run(project.run)
    bits, num_codes = report["bits"], run.schedule(BUCKET).num_tokens
    assert (bits["split"], bits["num_clips"], bits["num_left_out"]) == ("val", NUM_VAL, 0)
    assert bits["per_clip"] == pytest.approx(bits["per_code"] * num_codes)
    # Two steps of training have not taught it much yet.
    assert bits["per_code"] == pytest.approx(np.log2(run.record.codebook_size), rel=0.1)
    assert report["summary"]["bits_per_clip"] == bits["per_clip"]


def test_bits_without_codes_of_the_split_are_left_out_and_the_reason_is_said(
    project: Project, tmp_path: Path
) -> None:
    data = shutil.copytree(project.data, tmp_path / "data")
    declaration = data / "shards.json"
    _, token_sets, buckets, shards = parse_declaration(declaration.read_text(), "shards.json")
    kept = [each for each in shards if each.split == "train"]
    declaration.write_text(dump_declaration(token_sets, buckets, kept))
    lines: list[str] = []
    report = evaluate(project.run, replace(CONFIG, data=str(data)), say=lines.append)
    reason = f"{data}: split 'val' has no samples in bucket {BUCKET}"
    assert report["bits"] == {"left_out": reason}
    assert f"no bits of clips: {reason}" in lines
    assert "bits_per_clip" not in report["summary"]


def test_the_joint_accuracy_is_at_most_that_of_each_attribute(report: dict[str, Any]) -> None:
    for group, shares in report["accuracy"].items():
        assert 0 <= report["joint_accuracy"][group] <= min(shares.values())
    assert report["summary"]["joint_accuracy"] == report["joint_accuracy"]["samples"]


def test_the_mean_color_is_the_baseline_of_the_reconstructions(
    project: Project, report: dict[str, Any]
) -> None:
    clips = [frames for frames, _ in render_clips(NUM_TRAIN + NUM_VAL, 0, 8, 9)][NUM_TRAIN:]
    errors = [np.square(clip - clip.mean(axis=(0, 1, 2)).round()).mean() for clip in clips]
    expected = np.mean(10 * np.log10(255**2 / np.array(errors)))
    assert report["psnr_mean_color"] == pytest.approx(expected, abs=1e-3)


def test_the_picture_says_what_made_it(project: Project, report: dict[str, Any]) -> None:
    metadata = read_metadata(project.run / "nearest.png")
    assert metadata["model"] == report["made_by"]["run"]
    assert metadata["generated"] == "true"


def test_a_second_evaluation_reuses_the_judge_aloud_and_agrees(
    project: Project, report: dict[str, Any]
) -> None:
    lines: list[str] = []
    again = evaluate(project.run, CONFIG, say=lines.append)
    assert any("judge: the one of these clips" in line for line in lines)
    assert again["summary"] == report["summary"]


def test_missing_pixels_are_made(project: Project, report: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(project.data, tmp_path / "data")
    pixels = tmp_path / "data" / "pixels"
    shutil.move(pixels, tmp_path / "elsewhere")
    config = EvaluateConfig(
        data=str(tmp_path / "data"), num_samples=6, num_shown=3, judge=CONFIG.judge
    )
    asked: list[str] = []

    def prepare(data: str) -> Path:
        asked.append(data)
        shutil.move(tmp_path / "elsewhere", pixels)
        return pixels

    again = evaluate(project.run, config, prepare_pixels=prepare)
    assert asked == [str(tmp_path / "data")]
    assert again["summary"] == report["summary"]


def test_a_dataset_of_another_tokenizer_is_refused(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.data, tmp_path / "data")
    declaration = tmp_path / "data" / "shards.json"
    _, (codes,), buckets, shards = parse_declaration(declaration.read_text(), "shards.json")
    others = [replace(codes, tokenizer="0" * 64)]
    declaration.write_text(dump_declaration(others, buckets, shards))
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate(project.run, EvaluateConfig(data=str(tmp_path / "data")))


def test_a_missing_dataset_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset folder"):
        evaluate(project.run, EvaluateConfig(data=str(tmp_path / "gone")))


@pytest.mark.slow
def test_a_run_by_class_is_judged_by_its_class_only(tmp_path: Path) -> None:
    project = make_project(tmp_path, "class")
    report = evaluate(project.run, CONFIG)
    assert set(report["accuracy"]["samples"]) == {"class"}
    assert "motion" in report["accuracy"]["real_held_out"]


def test_clips_without_labels_are_compared_but_not_judged(tmp_path: Path) -> None:
    project = make_project(tmp_path, "none", labelled=False)
    report = evaluate(project.run, CONFIG)
    assert report["accuracy"] == {}
    assert report["psnr"] > 0
    assert "class_accuracy" not in report["summary"]


@pytest.mark.slow
def test_without_a_val_split_the_judge_holds_training_clips_out(tmp_path: Path) -> None:
    project = make_project(tmp_path, "text", num_val=0)
    lines: list[str] = []
    report = evaluate(project.run, CONFIG, say=lines.append)
    assert any("no clips in split val" in line for line in lines)
    assert report["num_held_out"] == NUM_TRAIN // 10
    assert report["num_train"] == NUM_TRAIN - NUM_TRAIN // 10
    assert (report["bits"]["split"], report["bits"]["num_clips"]) == ("train", NUM_TRAIN)
    with pytest.raises(UserError, match="no clips of shape t9_h64_w64 in split val"):
        evaluate(project.run, replace(CONFIG, prompts_of="val"))


def test_prompts_that_were_never_trained_on_are_sampled(project: Project, tmp_path: Path) -> None:
    run = shutil.copytree(project.run, tmp_path / "run")
    lines: list[str] = []
    report = evaluate(run, replace(CONFIG, prompts_of="val"), say=lines.append)
    captions = [caption_of(each) for _, each in render_clips(NUM_TRAIN + NUM_VAL, 0, 8, 9)]
    new = set(captions[NUM_TRAIN:]) - set(captions[:NUM_TRAIN])
    assert report["num_prompts"] == min(len(new), CONFIG.num_samples) > 2
    assert any(f"{len(new)} prompts of split val are new to the run" in line for line in lines)
    assert report["num_held_out"] == sum(each in new for each in captions[NUM_TRAIN:])
    assert set(report["accuracy"]["samples"]) == {"class", "motion", "color"}


def test_a_prompt_is_new_when_its_words_were_never_trained_on_together(project: Project) -> None:
    run = open_run(project.run)
    seen = next(caption_of(each) for _, each in render_clips(1, 0, 8, 9))
    prompts = [seen, seen.upper(), seen + " sideways", "a red red red", None]
    clips = Clips(np.zeros((5, 1, 2, 2, 3), np.uint8), [{}] * 5, prompts)
    found = unseen_prompts(run, clips, project.data)
    assert (found.new, found.trained_on, found.not_taken) == (("a red red red",), 2, 1)
    with pytest.raises(UserError, match=r"none of the 1 prompts of split val is new to this run"):
        unseen_prompts(run, clips.of_prompts([seen]), project.data)
    with pytest.raises(UserError, match="prompts_of val: this run has no condition"):
        unseen_prompts(replace(run, vocabulary=Vocabulary("none")), clips, project.data)


def test_copies_are_code_rows_that_are_known_entirely() -> None:
    known = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint16)
    made = np.array([[4, 5, 6], [1, 2, 4], [1, 2, 3], [3, 2, 1]], dtype=np.int64)
    assert copy_share(made, known) == 0.5


def test_the_nearest_clip_is_the_one_with_the_least_error() -> None:
    clips = np.stack([frames for frames, _ in render_clips(20, 0, 8, 9)])
    noise = np.random.default_rng(0).integers(0, 3, clips[4:9].shape, dtype=np.uint8)
    found, similarity = nearest(np.minimum(clips[4:9], 250) + noise, clips)
    assert found.tolist() == [4, 5, 6, 7, 8]
    assert similarity.min() > 35
    np.testing.assert_array_equal(nearest(clips, clips)[0], np.arange(20))
