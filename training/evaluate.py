"""Evaluation of a run: bits of held-out clips, and what a judge of real clips sees in samples.

    report = evaluate("runs/demo/run", EvaluateConfig())

Measured, each beside what real clips give: bits of held-out clips' codes under teacher forcing
(cross-entropy, as in training); accuracy per attribute, and of all of them jointly, of
real held-out clips, of their reconstructions by the tokenizer, and of samples; PSNR of the
reconstructions beside that of each clip's mean color; Frechet distance in the judge's features
beside the distance between two sets of real clips; the share of samples that copy a training clip
code for code; and the training clip nearest to each sample, drawn into RUN/nearest.png. The report
is RUN/evaluation.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.shards import Dataset, ShardError, open_dataset
from tokenizer.metrics import mean_color, psnr
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError, to_dict
from training.comparison import Comparison, compared
from training.config import SampleConfig
from training.draws import numpy_generator
from training.evaluate_config import NEW_SAMPLES, EvaluateConfig
from training.guidance import is_guided
from training.kept_samples import KeptSamples
from training.likeness import copy_share, nearest
from training.pictures import contact_sheet, save_png
from training.real_clips import Clips
from training.run import OpenedRun, pick_device
from training.samples import (
    Generated,
    bucket_of,
    check_settings,
    generate,
    open_to_sample,
)
from training.teacher_forcing import bits_of
from training.verdict import judge_of, verdict

REPORT_FILE = "evaluation.json"
NEAREST_FILE = "nearest.png"
_BATCH = 32


def evaluate(
    run_dir: str | Path,
    config: EvaluateConfig,
    prepare_pixels: Callable[[str], Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judges the run, writes its report and picture, and returns the report.

    The real clips are the dataset's `pixels`, which `prepare_pixels` makes when they are missing.
    Raises UserError when run, dataset and pixel shards do not belong together.
    """
    run_dir = Path(run_dir)
    run = open_to_sample(run_dir, config.sample, pick_device(config.sample.device))
    kept = _kept(run, config)
    if kept is None:
        check_settings(run, _settings(run, config))
    bucket = kept.bucket if kept else bucket_of(run, config.sample)
    real, run = compared(run, run_dir, bucket, config, prepare_pixels, say)
    train, held_out = real.train, real.held_out
    if kept is not None:
        _check_prompts(kept, real.wanted, config)
    bits = _bits(run, real, config.num_real, say)
    judge, key = judge_of(run_dir, train, real.pixels.fingerprint, config.judge, say)
    rebuilt = reconstruct(run.tokenizer, held_out.frames)
    originals = torch.from_numpy(held_out.frames)
    if kept is not None:
        samples = kept.decoded()
        say(f"{len(samples.codes)} samples of {kept.folder.path}, {samples.num_steps} steps each")
    else:
        samples = generate(run, _prompts(real.wanted, config), _settings(run, config))
        took = f"{samples.seconds:.1f} s, {samples.num_steps} steps each"
        say(f"{len(samples.codes)} samples in {took}")
    neighbours, similarity = nearest(samples.frames, train.frames)
    _, real_similarity = nearest(held_out.frames, train.frames)
    promised = [real.wanted[prompt] for prompt in samples.prompts]
    report: dict[str, Any] = {
        "psnr": _mean_psnr(torch.from_numpy(rebuilt), originals),
        "psnr_mean_color": _mean_psnr(mean_color(originals), originals),
        "copy_share": copy_share(samples.codes, _train_codes(real.codes, bucket)),
        "distinct_share": len({row.tobytes() for row in samples.codes}) / len(samples.codes),
        "nearest_psnr": {
            "samples": float(np.median(similarity)),
            "real_held_out": float(np.median(real_similarity)),
        },
        "bits": bits,
        **verdict(judge, train, held_out, rebuilt, samples.frames, promised),
    }
    report = {
        "summary": _summary(report, run, samples),
        **report,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "num_samples": len(samples.codes),
        "num_prompts": len(set(samples.prompts)),
        "sample_seconds": None if kept else samples.seconds,
        "made_by": {
            "run": run.fingerprint,
            "step": run.step,
            "dataset": real.codes.fingerprint,
            "pixels": real.pixels.fingerprint,
            "judge": key,
            "bucket": bucket,
            "settings": to_dict(config) | ({"sample": kept.settings} if kept else {}),
        },
    }
    _draw_nearest(run_dir, report["made_by"], samples, train, neighbours, config.num_shown)
    partial = run_dir / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, run_dir / REPORT_FILE)
    return report


def reconstruct(
    tokenizer: Tokenizer, frames: UInt8[np.ndarray, "n t h w c"]
) -> UInt8[np.ndarray, "n t h w c"]:
    """The clips after a round trip through the tokenizer's codes."""
    schedule = tokenizer.schedule_for(*frames.shape[1:4])
    device = next(tokenizer.parameters()).device
    rebuilt = []
    for start in range(0, len(frames), _BATCH):
        clips = torch.from_numpy(frames[start : start + _BATCH]).to(device)
        rebuilt.append(tokenizer.decode(tokenizer.encode(clips), schedule).cpu().numpy())
    return np.concatenate(rebuilt)


def _kept(run: OpenedRun, config: EvaluateConfig) -> KeptSamples | None:
    if config.samples is None:
        return None
    return KeptSamples.of(Path(config.samples), run, config.num_samples)


def _check_prompts(
    kept: KeptSamples, wanted: dict[str | None, dict[str, str]], config: EvaluateConfig
) -> None:
    """UserError unless it is known what each sample should show."""
    unknown = [prompt for prompt in kept.prompts if prompt not in wanted]
    if unknown:
        of = "that are new to the run" if config.prompts_of == "val" else "read"
        raise UserError(
            f"{config.samples}: nothing says what {len(unknown)} of its {len(kept.codes)} samples "
            f"should show: {unknown[0]!r} is no prompt of the {config.prompts_of} clips {of}; "
            "sample prompts of the dataset, or see --prompts_of and --num_real"
        )


def _prompts(wanted: dict[str | None, dict[str, str]], config: EvaluateConfig) -> list[str | None]:
    """Every prompt in turn, in an order of the seed."""
    distinct = sorted(wanted, key=lambda prompt: prompt or "")
    order = numpy_generator(config.sample.seed, "evaluate").permutation(len(distinct))
    num_samples = config.num_samples or NEW_SAMPLES
    return [distinct[order[index % len(order)]] for index in range(num_samples)]


def _settings(run: OpenedRun, config: EvaluateConfig) -> SampleConfig:
    if run.vocabulary.kind == "none" and is_guided(config.sample.guidance):
        return replace(config.sample, guidance=replace(config.sample.guidance, scale=1.0))
    return config.sample


def _bits(
    run: OpenedRun, real: Comparison, most: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Of clips of the split, under the run's captions; or why there are none."""
    try:
        captioned = open_dataset(
            real.codes.root,
            captions=run.config.data.captions,
            token_set=real.codes.primary.name,
        )
        found = bits_of(run, captioned.samples(real.split, real.bucket), most)
    except ShardError:
        raise
    except UserError as error:
        say(f"no bits of clips: {error}")
        return {"left_out": str(error)}
    return {"split": real.split, **asdict(found)}


def _mean_psnr(clips: UInt8[Tensor, "n t h w c"], originals: UInt8[Tensor, "n t h w c"]) -> float:
    return float(psnr(clips, originals).mean())


def _summary(report: dict[str, Any], run: OpenedRun, samples: Generated) -> dict[str, Any]:
    """The figures that decide, flat: what the demo's result.json holds."""
    accuracy = report["accuracy"]
    summary: dict[str, Any] = {
        "method": run.record.method,
        "num_parameters": run.record.num_parameters,
        "psnr": report["psnr"],
        "psnr_mean_color": report["psnr_mean_color"],
    }
    if "per_clip" in report["bits"]:
        summary["bits_per_clip"] = report["bits"]["per_clip"]
    for name, share in accuracy.get("samples", {}).items():
        summary[f"{name}_accuracy"] = share
    for name, share in accuracy.get("real_held_out", {}).items():
        summary[f"real_{name}_accuracy"] = share
    if report["joint_accuracy"]:
        summary["joint_accuracy"] = report["joint_accuracy"]["samples"]
        summary["real_joint_accuracy"] = report["joint_accuracy"]["real_held_out"]
    if report["frechet"]:
        summary["frechet"] = report["frechet"]["samples"]
        summary["frechet_floor"] = report["frechet"]["real_held_out"]
    summary["copy_share"] = report["copy_share"]
    summary["steps_per_clip"] = samples.num_steps
    return summary


def _train_codes(dataset: Dataset, bucket: str) -> Int[np.ndarray, "m l"]:
    samples = dataset.samples(split="train", bucket=bucket)
    return samples.gather(np.arange(len(samples)))


def _draw_nearest(
    run_dir: Path,
    made_by: Mapping[str, Any],
    samples: Generated,
    train: Clips,
    neighbours: np.ndarray,
    num_shown: int,
) -> None:
    shown = range(min(num_shown, len(samples.frames)))
    rows: list[tuple[str, Sequence[np.ndarray]]] = [
        (samples.prompts[index] or "", [samples.frames[index], train.frames[neighbours[index]]])
        for index in shown
    ]
    sheet = contact_sheet(
        rows,
        title="Samples and their nearest training clips",
        columns=("generated", "nearest training clip"),
        frames_per_clip=9,
    )
    metadata = {
        "generated": "true",
        "model": made_by["run"],
        "seed": str(made_by["settings"]["sample"]["seed"]),
        "training_clips": "right column",
    }
    save_png(sheet, run_dir / NEAREST_FILE, metadata)
