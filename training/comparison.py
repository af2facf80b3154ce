"""What a run's samples are compared with: real clips, trained on or held out, and their prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.shards import Dataset, open_dataset
from tokenizer.settings import UserError
from training.evaluate_config import EvaluateConfig
from training.real_clips import Clips, intended, read_clips
from training.run import OpenedRun
from training.samples import open_to_sample
from training.unseen_prompts import unseen_prompts


@dataclass(frozen=True)
class Comparison:
    """Real clips of one shape."""

    codes: Dataset
    """Its primary token set is that of the run's tokenizer."""
    pixels: Dataset
    bucket: str
    split: str
    """That of the held-out clips: val, or train where that is all there is."""
    train: Clips
    held_out: Clips
    wanted: dict[str | None, dict[str, str]]
    """The prompts to sample, and what a sample of each should show."""


def compared(
    run: OpenedRun,
    run_dir: Path,
    bucket: str,
    config: EvaluateConfig,
    prepare_pixels: Callable[[str], Path] | None,
    say: Callable[[str], None],
) -> tuple[Comparison, OpenedRun]:
    """The clips of the run's dataset, and the run, which has been told of captions new to it.

    Raises UserError when run, dataset and pixel shards do not belong together, or there is nothing
    to compare with.
    """
    data_dir = _data_dir(run, config)
    codes, pixels = _datasets(run, data_dir, prepare_pixels)
    kind = run.vocabulary.kind
    train = read_clips(pixels, "train", bucket, config.num_real, kind)
    has_val = any(each.split == "val" and each.bucket == bucket for each in pixels.shards)
    if has_val:
        held_out = read_clips(pixels, "val", bucket, config.num_real, kind)
    elif config.prompts_of == "val":
        raise UserError(
            f"{data_dir}: no clips of shape {bucket} in split val, so none whose prompts are new; "
            "build it with --select.hold_out caption and train on that"
        )
    else:
        held_out, train = train.parted(every=10)
        say("no clips in split val: every tenth training clip is held out, from the judge only")
    if len(train) < 2:
        raise UserError(f"{data_dir}: an evaluation needs at least two clips of shape {bucket}")
    if config.prompts_of == "val":
        run = _told(run, run_dir, held_out, config)
        unseen = unseen_prompts(run, held_out, data_dir)
        say(unseen.said())
        wanted = intended(run.vocabulary, train, held_out)
        wanted = {prompt: each for prompt, each in wanted.items() if prompt in unseen.new}
        held_out = held_out.of_prompts(unseen.new)
    else:
        trained_on = (train,) if has_val else (train, held_out)
        wanted = intended(run.vocabulary, *trained_on)
    say(f"{len(train)} real clips to learn from, {len(held_out)} held out")
    split = "val" if has_val else "train"
    return Comparison(codes, pixels, bucket, split, train, held_out, wanted), run


def _told(run: OpenedRun, run_dir: Path, clips: Clips, config: EvaluateConfig) -> OpenedRun:
    """The run, its text tower (if it has one) told the clips' captions."""
    if run.vocabulary.kind != "clip_text":
        return run
    device = str(next(run.generator.parameters()).device)
    captions = tuple(each for each in clips.prompts if each is not None)
    return open_to_sample(run_dir, replace(config.sample, prompts=captions), device)


def _data_dir(run: OpenedRun, config: EvaluateConfig) -> Path:
    path = config.data or run.config.data.path
    if path is None:
        raise UserError("the run does not say where its dataset is; give --data DIR")
    return Path(path)


def _datasets(
    run: OpenedRun, data_dir: Path, prepare_pixels: Callable[[str], Path] | None
) -> tuple[Dataset, Dataset]:
    pixels_dir = data_dir / "pixels"
    codes = _codes_of(open_dataset(data_dir), run.record.tokenizer)
    if prepare_pixels is not None and not (pixels_dir / "_SUCCESS").exists():
        pixels_dir = prepare_pixels(str(data_dir))
    pixels = open_dataset(pixels_dir)
    if pixels.primary.kind != "frames":
        raise UserError(f"{pixels_dir}: holds {pixels.primary.kind}, not frames of real clips")
    return codes, pixels


def _codes_of(dataset: Dataset, tokenizer: str) -> Dataset:
    """The dataset, its primary token set that of the run's tokenizer."""
    for token_set in dataset.token_sets.values():
        if token_set.tokenizer == tokenizer:
            return open_dataset(dataset.root, token_set=token_set.name)
    raise UserError(
        f"{dataset.root}: made by another tokenizer than the run's; give --data the dataset that "
        "the run was trained on"
    )
