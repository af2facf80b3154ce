"""The demo's digits, tokenizers and generators that benchmarks of quality are run on.

    data = quality_data(quick=False, device="cpu")   # shards with both token sets
    folder = trained("raster", 0, data, NUM_TOKENS, "cpu")   # a finished run of seed 0

Whatever is there already is not made again: a run's folder is named by the settings that it was
trained with. `benchmarks/README.md` says who uses which.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.build import build, build_pixels
from pipeline.config import BuildConfig, ClipSettings, SelectSettings, TokenizeSettings
from pipeline.corpus import CLIPS_PER_VIDEO, write_corpus
from pipeline.shards import Dataset, open_dataset
from tokenizer.config import TokenizerConfig
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import read_settings, to_dict
from training.config import DataConfig, GeneratorRun, TokenizerRun
from training.launch.local import launch
from training.method_config import MethodConfig
from training.real_clips import Clips, read_clips
from training.run import open_run
from training.teacher_forcing import bits_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
WORK = OUT / "quality"
PRESETS = ROOT / "training" / "presets"
BUCKET = "9x64x64"

TOKEN_SETS = {
    "pyramid": QuantizerConfig(codebook_size=1024, scales=(1, 2, 4)),
    "grid": QuantizerConfig(codebook_size=8192, scales=(4,), num_phi=1),
}
METHODS: dict[str, tuple[str, MethodConfig]] = {
    "next scale": ("pyramid", MethodConfig(name="next_scale")),
    "next scale, NAR inside": ("pyramid", MethodConfig(name="next_scale", inner="nar")),
    "next scale, random inside": (
        "pyramid",
        MethodConfig(name="next_scale", inner="random", num_steps=4),
    ),
    "raster, pyramid": ("pyramid", MethodConfig(name="raster")),
    "raster": ("grid", MethodConfig(name="raster")),
    "PAR 1x2x2": ("grid", MethodConfig(name="par", regions=(1, 2, 2))),
    "PAR 3x2x2": ("grid", MethodConfig(name="par", regions=(3, 2, 2))),
    "NAR": ("grid", MethodConfig(name="nar")),
    "ARPG, 8 steps": ("grid", MethodConfig(name="arpg", num_steps=8)),
    "ARPG, 24 steps": ("grid", MethodConfig(name="arpg", num_steps=8)),
}
"""What a generator learns, and on which codes."""
TRAINED_AS = {"ARPG, 24 steps": "ARPG, 8 steps"}
"""What only samples otherwise, by the other's weights."""
NUM_TOKENS = 360 * 24 * 63
"""Codes that a generator sees in its training."""
QUICK_TOKENS = 60 * 24 * 63
QUIET = {"trainer.tensorboard": False, "trainer.log_every": 100}
VERSION = 2
"""Grows when the same settings train or sample otherwise: older runs are not those any more."""


def quality_data(quick: bool, device: str) -> Path:
    """Shards of the corpus with both token sets, made by one build from the same clips."""
    clips = num_clips(quick)
    tokenizers = {name: WORK / f"tokenizer-{name}-{clips}" for name in TOKEN_SETS}
    config = BuildConfig(
        sources=(str(WORK / f"videos-{clips}"),),
        out=str(WORK / f"data-{clips}"),
        executor="inline",
        clips=ClipSettings(fps=8.0, buckets=(BUCKET,)),
        select=SelectSettings(val_share=0.1),
        tokenize=TokenizeSettings(
            tokenizer=str(tokenizers["pyramid"]),
            further={"grid": str(tokenizers["grid"])},
            threads=1,
        ),
    )
    changes = {
        "trainer.device": device,
        "trainer.num_steps": 60 if quick else 900,
        "trainer.log_every": 100,
    }
    runs = [
        replace(
            tokenizer_run(changes),
            tokenizer=TokenizerConfig(quantizer=TOKEN_SETS[name]),
            out=f"{result}-run",
            result=str(result),
        )
        for name, result in tokenizers.items()
    ]
    return built(config, runs, num_clips=clips, num_images=0)


def num_clips(quick: bool) -> int:
    """Clips of the corpus, those held out among them."""
    return 200 if quick else 1200


def built(config: BuildConfig, tokenizers: Sequence[TokenizerRun], **corpus: int) -> Path:
    """The dataset of a build from a corpus, whose tokenizers first learn from its clips."""
    (videos,), folder = config.sources, Path(config.out)
    if (folder / "_SUCCESS").exists():
        return folder
    write_corpus(videos, **corpus)
    build(config, until="select")
    pixels = build_pixels(config)
    for run in tokenizers:
        launch(replace(run, data=DataConfig(path=pixels)))
    build(config)
    return folder


def tokenizer_run(changes: Mapping[str, Any]) -> TokenizerRun:
    """The training of the demo's tokenizer, with changes."""
    changes = {"trainer.tensorboard": False, "trainer.preview_every": 0, **changes}
    return read_settings(TokenizerRun, PRESETS / "demo-tokenizer.yaml", changes)


def generator_run(data: DataConfig, changes: Mapping[str, Any]) -> GeneratorRun:
    """The training of the demo's generator, with changes."""
    return replace(read_settings(GeneratorRun, PRESETS / "demo.yaml", changes), data=data)


def opened_as(folder: Path, name: str) -> Dataset:
    """The dataset read as this token set; the pyramid's is the primary one."""
    return open_dataset(folder, token_set=None if name == "pyramid" else name)


def trained(name: str, seed: int, data: Path, tokens: int, device: str) -> Path:
    """The folder of a finished run, with what it took and its bits per clip in trained.json."""
    token_set, method = METHODS[TRAINED_AS.get(name, name)]
    dataset = opened_as(data, token_set)
    (bucket,) = dataset.buckets.values()
    assert bucket.schedule is not None
    changes = {
        "trainer.seed": seed,
        "trainer.num_steps": round(tokens / 24 / bucket.schedule.num_tokens),
        "trainer.device": device,
        **QUIET,
    }
    of_set = DataConfig(path=str(data), token_set=None if token_set == "pyramid" else token_set)
    run = replace(generator_run(of_set, changes), method=method)
    folder = WORK / f"{slug(TRAINED_AS.get(name, name))}-{seed}-{_identity(run, data.name)}"
    if not (folder / "trained.json").exists():
        cpu = time.process_time()
        launch(replace(run, out=str(folder)))
        opened = open_run(folder, device)
        about = {
            "train_steps": run.trainer.num_steps,
            "train_cpu_seconds": round(time.process_time() - cpu, 1),
            "bits_per_clip": bits_of(opened, dataset.samples("val", bucket.name)).per_clip,
            "num_parameters": opened.record.num_parameters,
        }
        (folder / "trained.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def unseen_clips(first: int, all_clips: int) -> Clips:
    """The clips of a corpus of `all_clips` behind the `first`, through the same decoder."""
    corpus = WORK / f"videos-{all_clips}"
    write_corpus(corpus, num_clips=all_clips, num_images=0)
    videos = sorted((corpus / "videos").glob("*.mp4"))[first // CLIPS_PER_VIDEO :]
    config = BuildConfig(
        sources=tuple(map(str, videos)),
        out=str(WORK / f"real-after-{first}"),
        executor="inline",
        clips=ClipSettings(fps=8.0, buckets=(BUCKET,)),
        select=SelectSettings(val_share=0.0),
    )
    build(config, until="select")
    pixels = open_dataset(build_pixels(config))
    (bucket,) = pixels.buckets
    return read_clips(pixels, "train", bucket, all_clips, "text")


def facts(arguments: Namespace, device: str = "cpu") -> dict[str, Any]:
    """What every result says of how it came about."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {device}, one thread",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "arguments": vars(arguments),
    }


def slug(name: str) -> str:
    """A method's name as that of a file."""
    return name.replace(", ", "-").replace(" ", "-")


def short_hash(content: Any) -> str:
    """Of JSON values, to name a folder by."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _identity(run: GeneratorRun, data: str) -> str:
    """Of what a training depends on: settings other than the defaults, and the dataset's name."""
    plain = to_dict(GeneratorRun())
    changed = {
        f"{section}.{key}": value
        for section, values in to_dict(run).items()
        if isinstance(values, dict) and section != "sampling"
        for key, value in values.items()
        if value != plain[section][key] and (section, key) != ("data", "path")
    }
    return short_hash([VERSION, data, changed])
