"""Does the multi-scale quantizer pay? Rate and distortion beside one scale of equal bits; health.

    python benchmarks/rate_distortion.py             make bench-tokenizer; half an hour on two cores
    python benchmarks/rate_distortion.py --quick     a few minutes: one seed, short trainings
    python benchmarks/rate_distortion.py --device cuda --size small --steps 6000 --shape 17x128x128

Three tokenizers of one autoencoder, trained alike (steps, batches, data order; by `tessera
tokenizer train`'s own loop), of the same nominal bits per clip within 10%:

    multi-scale   residual pyramids, one codebook of 1,024 that follows its data
    single-scale  one grid, a codebook of 8,192 that follows its data
    plain         the pyramids again, but codes at random first, by gradient, never restarted

on two corpora: the demo's moving digits, and real films, where the clips to judge by come from
other films than those to learn from. PSNR and SSIM are of held-out clips, after each scale, over
effective bits; the use of the codebook is over clips of both parts, enough for 20,480 tokens at the
finest scale where there are so many. Writes a table, `benchmarks/out/rate_distortion.json` and a
plot for each corpus. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.build import build, build_pixels
from pipeline.config import BuildConfig, ClipSettings, SelectSettings
from pipeline.corpus import write_corpus
from pipeline.shards import open_dataset
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer
from tokenizer.health import HealthTally
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError, read_settings, to_dict
from training.config import DataConfig, TokenizerRun
from training.evaluate_config import TokenizerEvalConfig
from training.launch.local import launch
from training.rate_distortion import Curve, Point, draw_curves
from training.tokenizer_eval import evaluate_tokenizer

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
WORK = OUT / "rate_distortion"
FINEST_TOKENS = 20_480
USAGE_GOAL = 0.90

LEARNED_FILMS = (
    "bbb_480p_30s.mp4",
    "bikes_multishot.mp4",
    "bottles_static_40s.mp4",
    "carphone_qcif.mp4",
    "h263_amr_vfr.3gp",
    "mpeg4_xvid_mp3.avi",
    "no_duration.webm",
    "phone_nonutf8_metadata.3gp",
    "asl_eat.mkv",
)
HELD_OUT_FILMS = (
    "foreman_hevc_720p.mp4",
    "nasa_13013.mp4",
    "forest_848x464.mp4",
    "av1_720p.mp4",
)
"""Chosen by what they show: no film here shares a scene with one above."""

LARGE = {
    "small": AutoencoderConfig(
        patch=4, spatial_stride=8, temporal_patch=2, channels=(96, 192), encoder_blocks=(1, 2),
        decoder_blocks=(2, 2),
    ),
    "base": AutoencoderConfig(
        patch=2, spatial_stride=8, temporal_patch=1, channels=(128, 256, 512),
        encoder_blocks=(2, 2, 2), decoder_blocks=(3, 3, 3),
    ),
}  # fmt: skip
"""Beside the tiny one of the demo, for an accelerator."""


@dataclass(frozen=True)
class Corpus:
    """Pixel shards to learn from and to be judged by."""

    name: str
    learned: Path
    held_out: Path
    held_out_split: str
    stride: int
    scales: tuple[int, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, few clips")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps per training")
    parser.add_argument("--batch", type=int, default=6, help="clips per step")
    parser.add_argument("--corpora", nargs="+", default=["digits", "real"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", *LARGE), default="tiny")
    parser.add_argument("--shape", default="9x64x64", help="clips of the real films")
    parser.add_argument("--fps", type=float, default=16.0, help="of the real films")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps = 1, arguments.steps or 60
    WORK.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    trials: list[dict[str, Any]] = []
    for corpus in _corpora(arguments):
        for seed in range(arguments.seeds):
            for arm, tokenizer in _arms(corpus, arguments.size).items():
                print(f"{corpus.name}, {arm}, seed {seed}", file=sys.stderr, flush=True)
                trials.append(_trial(corpus, arm, tokenizer, seed, arguments))
    summary = _summary(trials)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {arguments.device}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "arguments": vars(arguments),
        "wall_seconds": round(time.monotonic() - started, 1),
        "summary": summary,
        "trials": trials,
    }
    (OUT / "rate_distortion.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, arms in summary.items():
        _print(name, arms)
        _draw(name, arms, arguments)
    print(f"{OUT / 'rate_distortion.json'}, {OUT}/rate_distortion_*.png")
    return 0


def _corpora(arguments: argparse.Namespace) -> list[Corpus]:
    """Pixel shards, made where they are missing."""
    found = []
    if "digits" in arguments.corpora:
        clips = 160 if arguments.quick else 1200
        folder = WORK / f"digits-{clips}"
        write_corpus(folder / "videos", num_clips=clips, num_images=0)
        share = 0.25 if arguments.quick else 0.1
        pixels = _pixels(folder / "data", [str(folder / "videos")], "9x64x64", 8.0, share)
        found.append(Corpus("digits", pixels, pixels, "val", 16, (1, 2, 4)))
    if "real" in arguments.corpora:
        films = Path(os.environ.get("TESSERA_VIDEOS", ROOT.parent / "shared" / "videos"))
        if not (films / LEARNED_FILMS[0]).exists():
            raise UserError(f"no films at {films}; set TESSERA_VIDEOS, or give --corpora digits")
        folder = WORK / f"real-{arguments.shape}-{arguments.fps:g}"
        parts = [
            _pixels(
                folder / part, [str(films / name) for name in names], arguments.shape,
                arguments.fps, 0.0,
            )
            for part, names in (("learned", LEARNED_FILMS), ("held_out", HELD_OUT_FILMS))
        ]  # fmt: skip
        found.append(Corpus("real", *parts, "train", 8, (1, 2, 4, 8)))
    return found


def _pixels(out: Path, sources: Sequence[str], shape: str, fps: float, share: float) -> Path:
    if (out / "pixels" / "_SUCCESS").exists():
        return out / "pixels"
    config = BuildConfig(
        sources=tuple(sources),
        out=str(out),
        executor="inline",
        clips=ClipSettings(fps=fps, buckets=(shape,)),
        select=SelectSettings(val_share=share),
    )
    build(config, until="select")
    return Path(build_pixels(config))


def _arms(corpus: Corpus, size: str) -> dict[str, TokenizerConfig]:
    """Quantizers of equal nominal bits: 1.31 codes of 10 bits per cell, or one of 13."""
    stride, finest = corpus.stride, corpus.scales[-1]
    autoencoder = LARGE.get(size, AutoencoderConfig(patch=stride, spatial_stride=stride))
    finest = finest * stride // autoencoder.spatial_stride
    pyramid = tuple(side for side in (1, 2, 4, 8, 16) if side <= finest)
    multi = QuantizerConfig(codebook_size=1024, scales=pyramid)
    quantizers = {
        "multi-scale": multi,
        "single-scale": QuantizerConfig(codebook_size=8192, scales=(finest,), num_phi=1),
        "plain": replace(multi, learned_by="gradient", first_codes="random", restart_share=0.0),
    }
    return {
        arm: TokenizerConfig(autoencoder=autoencoder, quantizer=quantizer)
        for arm, quantizer in quantizers.items()
    }


def _trial(
    corpus: Corpus, arm: str, tokenizer: TokenizerConfig, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One training and what became of it; read from its folder when it was done before."""
    run = replace(
        read_settings(
            TokenizerRun,
            ROOT / "training" / "presets" / "demo-tokenizer.yaml",
            {
                "trainer.seed": seed,
                "trainer.num_steps": arguments.steps or (900 if corpus.name == "digits" else 400),
                "trainer.global_batch_size": arguments.batch,
                "trainer.device": arguments.device,
                "trainer.tensorboard": False,
                "trainer.preview_every": 0,
                "trainer.log_every": 100,
            },
        ),
        tokenizer=tokenizer,
        data=DataConfig(path=str(corpus.learned)),
    )
    identity = json.dumps([to_dict(run), asdict(corpus)], sort_keys=True, default=str)
    folder = (
        WORK / f"{corpus.name}-{arm}-{seed}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    )
    if (folder / "trial.json").exists():
        return json.loads((folder / "trial.json").read_text())
    wall, cpu = time.monotonic(), time.process_time()
    launch(replace(run, out=str(folder / "run"), result=str(folder / "tokenizer")))
    spent = {"wall_seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
    config = TokenizerEvalConfig(split=corpus.held_out_split, device=arguments.device)
    report = evaluate_tokenizer(
        folder / "tokenizer", corpus.held_out, folder / "evaluation", config
    )
    (bucket,) = report["buckets"].values()
    trial = {
        "corpus": corpus.name,
        "arm": arm,
        "seed": seed,
        "num_steps": run.trainer.num_steps,
        "num_parameters": report["tokenizer"]["num_parameters"],
        **{name: round(value, 1) for name, value in spent.items()},
        "pixels_per_clip": int(np.prod(bucket["shape"])),
        "held_out": bucket,
        "health": [
            health | {"residual": level["residual"]}
            for health, level in zip(
                _health(folder / "tokenizer", corpus, arguments.device), bucket["levels"]
            )
        ],
    }
    (folder / "trial.json").write_text(json.dumps(trial, indent=1) + "\n")
    return trial


def _health(folder: Path, corpus: Corpus, device: str) -> list[dict[str, float]]:
    """Use of the codebook at each level, over clips of both parts."""
    tokenizer = load_tokenizer(folder, device=device)
    tally = None
    for path in dict.fromkeys((corpus.learned, corpus.held_out)):
        dataset = open_dataset(path)
        for name in dataset.buckets:
            samples = dataset.samples(split=None, bucket=name)
            bucket = samples.bucket
            schedule = tokenizer.schedule_for(bucket.num_frames, bucket.height, bucket.width)
            finest = sum(pyramid[-1].num_tokens for pyramid in schedule.pyramids)
            tally = tally or HealthTally(schedule, tokenizer.codebook_size)
            wanted = min(len(samples), -(-FINEST_TOKENS // finest))
            places = np.arange(wanted) * len(samples) // wanted
            for start in range(0, wanted, 16):
                frames = torch.from_numpy(samples.gather(places[start : start + 16])).to(device)
                tally.add(tokenizer.encode(frames))
    assert tally is not None
    return [
        {
            "num_tokens": each.num_tokens,
            "usage": each.usage,
            "num_dead": each.num_dead,
            "perplexity": each.perplexity,
        }
        for each in tally.per_level()
    ]


def _summary(trials: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, with standard deviations, by corpus and arm."""
    summary: dict[str, dict[str, Any]] = {}
    for trial in trials:
        summary.setdefault(trial["corpus"], {}).setdefault(trial["arm"], []).append(trial)
    return {
        name: {arm: _of_seeds(found) for arm, found in arms.items()}
        for name, arms in summary.items()
    }


def _of_seeds(trials: list[dict[str, Any]]) -> dict[str, Any]:
    curves = [each["held_out"]["after_levels"] for each in trials]
    points = []
    for level in zip(*curves):
        point = {key: mean(each[key] for each in level) for key in level[0]}
        for key in ("psnr", "ssim"):
            point[f"{key}_spread"] = _spread([each[key] for each in level])
        points.append(asdict(Point(**point | {"num_scales": level[0]["num_scales"]})))
    health = [
        {key: mean(each[key] for each in level) for key in level[0]}
        for level in zip(*(each["health"] for each in trials))
    ]
    pixels = trials[0]["pixels_per_clip"]
    return {
        "seeds": len(trials),
        "num_steps": trials[0]["num_steps"],
        "num_parameters": trials[0]["num_parameters"],
        "held_out_clips": trials[0]["held_out"]["num_clips"],
        "cpu_seconds": mean(each["cpu_seconds"] for each in trials),
        "nominal_bits_per_clip": points[-1]["nominal_bits_per_pixel"] * pixels,
        "effective_bits_per_clip": points[-1]["effective_bits_per_pixel"] * pixels,
        "psnr_mean_color": trials[0]["held_out"]["psnr_mean_color"],
        "after_levels": points,
        "health": health,
        "finest_usage_by_seed": [each["health"][-1]["usage"] for each in trials],
        "checks": _checks(trials),
    }


def _checks(trials: list[dict[str, Any]]) -> dict[str, bool]:
    """What is asked of a healthy codebook, of every seed."""
    levels = [each["health"] for each in trials]
    return {
        "finest scale: 90% of codes used": all(h[-1]["usage"] >= USAGE_GOAL for h in levels),
        "enough tokens at it (20,480)": all(h[-1]["num_tokens"] >= FINEST_TOKENS for h in levels),
        "every scale lowers the residual": all(
            after["residual"] < before
            for h in levels
            for before, after in zip((1.0, *(each["residual"] for each in h)), h)
        ),
        "perplexity at least min(16, tokens / 4)": all(
            each["perplexity"] >= min(16, each["num_tokens"] / 4) for h in levels for each in h
        ),
    }


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _print(name: str, arms: dict[str, Any]) -> None:
    console = Console(width=max(Console().width, 132))
    table = Table(title=f"{name}: held-out clips, mean of seeds", title_justify="left")
    for column in ("", "scales", "nominal bits", "effective bits", "PSNR, dB", "SSIM"):
        table.add_column(column, justify="left" if not column else "right")
    for column in ("used", "perplexity", "residual", "CPU s"):
        table.add_column(column, justify="right")
    for arm, found in arms.items():
        factor = (
            found["nominal_bits_per_clip"] / found["after_levels"][-1]["nominal_bits_per_pixel"]
        )
        for level, (point, health) in enumerate(zip(found["after_levels"], found["health"])):
            is_last = level + 1 == len(found["health"])
            table.add_row(
                "" if level else arm,
                str(point["num_scales"]),
                f"{point['nominal_bits_per_pixel'] * factor:.0f}",
                f"{point['effective_bits_per_pixel'] * factor:.0f}",
                f"{point['psnr']:.2f} ± {point['psnr_spread']:.2f}",
                f"{point['ssim']:.3f} ± {point['ssim_spread']:.3f}",
                f"{health['usage']:.1%}",
                f"{health['perplexity']:.0f}",
                f"{health['residual']:.1%}",
                f"{found['cpu_seconds']:.0f}" if is_last else "",
                end_section=is_last,
            )
    console.print(table)
    for arm, found in arms.items():
        said = ", ".join(
            f"{check}: {'yes' if ok else 'NO'}" for check, ok in found["checks"].items()
        )
        console.print(f"{arm}: {said}")


def _draw(name: str, arms: dict[str, Any], arguments: argparse.Namespace) -> None:
    curves = [
        Curve(arm, tuple(Point(**each) for each in found["after_levels"]))
        for arm, found in arms.items()
    ]
    some = next(iter(arms.values()))
    draw_curves(
        curves,
        OUT / f"rate_distortion_{name}.png",
        title=f"Multi-scale beside single-scale codes: {name}",
        subtitle=f"{some['held_out_clips']} held-out clips, {some['seeds']} seeds, "
        f"{some['num_steps']} steps each on {arguments.device}; bars: standard deviation",
        flat_psnr=some["psnr_mean_color"],
    )


if __name__ == "__main__":
    sys.exit(main())
