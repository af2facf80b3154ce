"""Evaluation of a tokenizer: how good its pictures are, at how many bits, on clips it never saw.

    report = evaluate_tokenizer("runs/demo/data/tokenizer", "runs/demo/data/pixels", "report")

Writes into the folder `report`, if one is named, `evaluation.json`, `rate_distortion.png` and
`reconstructions.png`. The conventions of the measures are those of `tokenizer.metrics`; a figure of
several shapes together is the mean over all clips, and bits per pixel are all bits over all pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.shards import open_dataset
from tokenizer.folder import find_tokenizer, load_tokenizer
from tokenizer.frechet import Moments
from tokenizer.model import Tokenizer
from tokenizer.perceptual import load_lpips
from tokenizer.settings import to_dict
from tokenizer.versions import own_version
from training.evaluate_config import TokenizerEvalConfig
from training.features import open_extractor
from training.pictures import save_png
from training.pixel_clips import batches, choose_clips
from training.rate_distortion import Curve, Point, draw_curves
from training.reconstruction_sheet import Shown, draw_reconstructions
from training.run import pick_device, writable_folder
from training.scoring import Decoded, Score, distances, use_of

REPORT_FILE = "evaluation.json"
CURVE_FILE = "rate_distortion.png"
SHEET_FILE = "reconstructions.png"
WRITTEN = REPORT_FILE, CURVE_FILE, SHEET_FILE
CONVENTIONS = {
    "psnr": "dB, uint8 RGB, mean over clips of the mean over frames of each frame's PSNR",
    "temporal_psnr": "the same of differences between consecutive frames",
    "ssim": "per frame and channel, Gaussian window of 11 pixels, mean over clips",
    "ms_ssim": "per frame, up to five resolutions (as many as fit), mean over clips",
    "nominal_bits_per_pixel": "log2(codebook size) per code, over t * h * w pixels of a clip",
    "effective_bits_per_pixel": "entropy of the codes of each level, estimated from these clips "
    "(Chao and Shen 2003)",
    "residual": "squared error of the latents after a level, as a share of their square",
}


def evaluate_tokenizer(
    tokenizer: str | Path | Tokenizer,
    data: str | Path,
    out: str | Path | None = None,
    config: TokenizerEvalConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    pixels_of: Callable[[Path], Path] = lambda data: data,
) -> dict[str, Any]:
    """The report, which is also written into `out`; `progress` hears of clips done and to do.

    `data` is a dataset of pixel shards, or what `pixels_of` makes one of, which may take long: it
    comes when all else is known to be there. UserError for what is not, when the split has no
    clips, and when their shapes do not fit the tokenizer.
    """
    config = config or TokenizerEvalConfig()
    device = pick_device(config.device)
    folder = None
    if not isinstance(tokenizer, Tokenizer):
        folder = find_tokenizer(tokenizer)
        tokenizer = load_tokenizer(folder, device=device)
    extractors = [open_extractor(each, device) for each in config.features]
    lpips = load_lpips(config.lpips, device) if config.lpips.vgg or config.lpips.heads else None
    target = writable_folder(out) if out is not None else None
    dataset = open_dataset(pixels_of(Path(data)))
    chosen = choose_clips(dataset, tokenizer, config.split, config.max_clips)
    total = sum(len(places) for _, places in chosen.values())
    scores, shown = {}, []
    done = 0
    for name, (samples, places) in chosen.items():
        bucket = samples.bucket
        shape = bucket.num_frames, bucket.height, bucket.width
        score = scores[name] = Score(tokenizer, shape, extractors, lpips)
        candidates: list[Shown] = []
        for frames, batch_places in batches(samples, places, config.batch_size):
            decoded = score.add(torch.from_numpy(frames))
            candidates = _thinned(candidates + _shown(decoded, batch_places), 4 * config.num_shown)
            done += len(frames)
            progress(done, total)
        ranked = _thinned(candidates, config.num_shown)
        metadata = samples.metadata([each.place for each in ranked])
        shown += [
            each.described(said, _rank(index, len(ranked)))
            for index, (each, said) in enumerate(zip(ranked, metadata))
        ]
    report = {
        "format": 1,
        "tokenizer": _described(tokenizer, folder),
        "data": {
            "path": str(dataset.root),
            "fingerprint": dataset.fingerprint,
            "split": config.split,
        },
        "overall": _overall(list(scores.values())),
        "buckets": {name: score.report() for name, score in scores.items()},
        "features": [
            {"name": each.name, "sha256": each.sha256, "about": each.about} for each in extractors
        ],
        "lpips": to_dict(config.lpips) if lpips is not None else "no weights",
        "conventions": CONVENTIONS,
        "made_by": {
            "tessera": own_version(),
            "torch": torch.__version__,
            "device": device,
            "threads": torch.get_num_threads(),
            "settings": to_dict(config),
        },
    }
    if target is not None:
        _write(report, scores, shown, target)
    return report


def _shown(decoded: Decoded, places: np.ndarray) -> list[Shown]:
    after = [each.numpy() for each in decoded.after]
    return [
        Shown.of(
            decoded.frames[row].numpy(),
            [each[row] for each in after],
            float(decoded.psnr[row]),
            int(place),
        )
        for row, place in enumerate(places)
    ]


def _thinned(candidates: list[Shown], count: int) -> list[Shown]:
    """At most `count` of them at even ranks of PSNR, the worst and the best among them."""
    ranked = sorted(candidates, key=lambda each: each.psnr)
    ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[rank] for rank in ranks]


def _rank(index: int, count: int) -> str:
    if index in (0, count - 1) and count > 1:
        return "the best clip" if index else "the worst clip"
    return f"better than {index / max(count - 1, 1):.0%}"


def _overall(scores: list[Score]) -> dict[str, Any]:
    """All shapes together."""
    clips = sum(each.num_clips for each in scores)
    means: dict[str, float | None] = {}
    for name in scores[0].means():
        found = [
            (each.means()[name], each.num_clips)
            for each in scores
            if each.means()[name] is not None
        ]
        weight = sum(count for _, count in found)
        means[name] = (
            sum((value or 0) * count for value, count in found) / weight if found else None
        )
    moments: dict[str, dict[str, Moments]] = {}
    for score in scores:
        for name, kinds in score.moments.items():
            known = moments.setdefault(name, {})
            for kind, value in kinds.items():
                known[kind] = known[kind] + value if kind in known else value
    return {
        "num_clips": clips,
        **means,
        "frechet": distances(moments),
        "codebook": use_of(scores[0].tally.overall([each.tally for each in scores[1:]])),
        "after_levels": [asdict(each) for each in _joint_points(scores)],
    }


def _joint_points(scores: list[Score]) -> list[Point]:
    """The curve of all shapes: bits over pixels, quality over clips."""
    curves = [each.points() for each in scores]
    clips = np.array([each.num_clips for each in scores], dtype=float)
    pixels = clips * [each.pixels_per_clip for each in scores]
    points = []
    for index in range(max(len(curve) for curve in curves)):
        at = [curve[min(index, len(curve) - 1)] for curve in curves]
        ssims = [each.ssim for each in at]
        points.append(
            Point(
                num_scales=index + 1,
                nominal_bits_per_pixel=_mean([each.nominal_bits_per_pixel for each in at], pixels),
                effective_bits_per_pixel=_mean(
                    [each.effective_bits_per_pixel for each in at], pixels
                ),
                psnr=_mean([each.psnr for each in at], clips),
                ssim=None if None in ssims else _mean([each or 0.0 for each in ssims], clips),
            )
        )
    return points


def _mean(values: list[float], weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights))


def _described(tokenizer: Tokenizer, folder: Path | None) -> dict[str, Any]:
    return {
        "path": None if folder is None else str(folder),
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "num_parameters": sum(each.numel() for each in tokenizer.parameters()),
        "config": to_dict(tokenizer.config),
    }


def _write(
    report: dict[str, Any], scores: dict[str, Score], shown: list[Shown], target: Path
) -> None:
    name = report["tokenizer"]["fingerprint"][:12]
    overall = report["overall"]
    said = f"{overall['num_clips']} clips of split {report['data']['split']}"
    made_by = {"tokenizer": report["tokenizer"]["fingerprint"], "data": report["data"]["path"]}
    curves = [Curve(each, tuple(score.points())) for each, score in scores.items()]
    draw_curves(
        curves,
        target / CURVE_FILE,
        title="Picture quality by the bits spent on it",
        subtitle=f"tokenizer {name}, {said}, after each scale",
        flat_psnr=overall["psnr_mean_color"],
    )
    sheet = draw_reconstructions(
        shown,
        title="What the codes give back",
        subtitle=f"tokenizer {name}, {said}: {overall['psnr']:.2f} dB on average",
    )
    save_png(sheet, target / SHEET_FILE, made_by)
    partial = target / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, target / REPORT_FILE)
