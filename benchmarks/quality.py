"""Which order makes the best clips? Every method on the demo's digits, on one footing.

    python benchmarks/quality.py             make bench-quality; two hours on one core
    python benchmarks/quality.py --quick     minutes: one seed, short trainings
    python benchmarks/quality.py --only NAR "ARPG, 8 steps" --seeds 1

Two tokenizers of one autoencoder, trained alike and of equal nominal bits per clip within 10%: a
pyramid of three scales, and a single grid; one build makes both token sets. On the codes of each,
generators of one backbone learn by every method that the codes allow, over equally many tokens,
from captions. A judge that was trained on real clips then says what their samples show (class,
motion), and how far they are from the training clips in its features (Frechet distance of 270
clips), beside real clips that no training has seen (the floor), these decoded from their codes
(what the tokenizer allows) and clips whose every code is drawn from those of its place alone (the
ceiling). Every method is sampled at a few temperatures; one half of the samples says which is its
best one (of the smallest distance), the other half is what is told of it, and at 1. Bits per clip
are of held-out clips under teacher forcing, to be compared within a token set only. Seconds are of
one video at batch 1, taken at the end, method after method, in several rounds.

Writes a table, `benchmarks/out/quality.json` and `quality.png`. An interrupted run goes on where it
was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from jury import Jury, Looks

from pipeline.build import build, build_pixels
from pipeline.config import BuildConfig, ClipSettings, SelectSettings, TokenizeSettings
from pipeline.corpus import write_corpus
from pipeline.shards import Dataset, open_dataset
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import read_settings, to_dict
from training.config import DataConfig, GeneratorRun, SampleConfig, TokenizerRun
from training.draws import numpy_generator
from training.evaluate import reconstruct
from training.launch.local import launch
from training.likeness import copy_share
from training.method_config import MethodConfig
from training.rate_distortion import COLORS, FAINT, INK, PAPER
from training.run import open_run
from training.samples import Generated, generate
from training.teacher_forcing import bits_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
WORK = OUT / "quality"
PRESETS = ROOT / "training" / "presets"

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
TRAINED_AS = {"ARPG, 24 steps": "ARPG, 8 steps"}
VERSION = 2
"""Grows when the same settings train or sample otherwise: older runs are not those any more."""
TEMPERATURES = (1.0, 0.8, 0.6, 0.4)
SAMPLED_IN = {"ARPG, 24 steps": 24}
"""What only samples otherwise, by the other's weights."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, short trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=360 * 24 * 63, help="codes seen in training")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--samples", type=int, default=540, help="clips to judge per seed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.tokens, arguments.samples = 1, 60 * 24 * 63, 80
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    data = dataset_of(arguments)
    jury = Jury(data, WORK, _num_clips(arguments))
    trials = []
    for seed in range(arguments.seeds):
        for name in arguments.only:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            trials.append(_trial(name, seed, data, jury, arguments))
    timed = _timed(trials[: len(arguments.only)], arguments.device)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {arguments.device}, one thread",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "arguments": vars(arguments),
        "token_sets": {name: _facts(data, name) for name in TOKEN_SETS},
        "methods": {
            name: {
                **_of_seeds([each for each in trials if each["name"] == name]),
                **timed[name],
            }
            for name in arguments.only
        },
        "bounds": _bounds(data, jury, arguments),
        "trials": trials,
    }
    (OUT / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    _draw(result)
    print(f"{OUT / 'quality.json'}, {OUT / 'quality.png'}")
    return 0


def _num_clips(arguments: argparse.Namespace) -> int:
    return 200 if arguments.quick else 1200


def dataset_of(arguments: argparse.Namespace) -> Path:
    """Shards of the corpus with both token sets, made by one build from the same clips."""
    clips = _num_clips(arguments)
    corpus, folder = WORK / f"videos-{clips}", WORK / f"data-{clips}"
    if (folder / "_SUCCESS").exists():
        return folder
    write_corpus(corpus, num_clips=clips, num_images=0)
    tokenizers = {name: str(WORK / f"tokenizer-{name}-{clips}") for name in TOKEN_SETS}
    config = BuildConfig(
        sources=(str(corpus),),
        out=str(folder),
        executor="inline",
        clips=ClipSettings(fps=8.0, buckets=("9x64x64",)),
        select=SelectSettings(val_share=0.1),
        tokenize=TokenizeSettings(
            tokenizer=tokenizers["pyramid"], further={"grid": tokenizers["grid"]}, threads=1
        ),
    )
    build(config, until="select")
    pixels = build_pixels(config)
    for name, result in tokenizers.items():
        _train_tokenizer(name, Path(pixels), Path(result), arguments)
    build(config)
    return folder


def _train_tokenizer(name: str, pixels: Path, out: Path, arguments: argparse.Namespace) -> None:
    changes = {
        "trainer.device": arguments.device,
        "trainer.num_steps": 60 if arguments.quick else 900,
        "trainer.tensorboard": False,
        "trainer.preview_every": 0,
        "trainer.log_every": 100,
    }
    run = replace(
        read_settings(TokenizerRun, PRESETS / "demo-tokenizer.yaml", changes),
        tokenizer=TokenizerConfig(quantizer=TOKEN_SETS[name]),
        data=DataConfig(path=str(pixels)),
        out=f"{out}-run",
        result=str(out),
    )
    launch(run)


def _facts(folder: Path, name: str) -> dict[str, Any]:
    dataset = opened_as(folder, name)
    (bucket,) = dataset.buckets.values()
    assert bucket.schedule is not None
    assert dataset.primary.codebook_size is not None
    num_tokens = bucket.schedule.num_tokens
    return {
        "codes_per_clip": num_tokens,
        "codebook_size": dataset.primary.codebook_size,
        "nominal_bits_per_clip": num_tokens * math.log2(dataset.primary.codebook_size),
        "scales": bucket.schedule.to_list(),
    }


def opened_as(folder: Path, name: str) -> Dataset:
    """The dataset read as this token set; the pyramid's is the primary one."""
    return open_dataset(folder, token_set=None if name == "pyramid" else name)


def _trial(
    name: str, seed: int, data: Path, jury: Jury, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One training and what its samples show; read from its folder where it was done before."""
    folder = trained(TRAINED_AS.get(name, name), seed, data, arguments)
    looks = [_looks(name, folder, each, data, jury, arguments) for each in TEMPERATURES]
    return {
        "name": name,
        "seed": seed,
        "run": folder.name,
        **json.loads((folder / "trained.json").read_text()),
        "chosen_by": [_figures(each.part(slice(None, None, 2)), jury) for each in looks],
        "figures": [_figures(each.part(slice(1, None, 2)), jury) for each in looks],
    }


def trained(name: str, seed: int, data: Path, arguments: argparse.Namespace) -> Path:
    """The folder of a finished run, with what it took and its bits per clip in trained.json."""
    token_set = METHODS[name][0]
    dataset = opened_as(data, token_set)
    (bucket,) = dataset.buckets.values()
    assert bucket.schedule is not None
    changes = {
        "trainer.seed": seed,
        "trainer.num_steps": round(arguments.tokens / 24 / bucket.schedule.num_tokens),
        "trainer.device": arguments.device,
        "trainer.tensorboard": False,
        "trainer.log_every": 100,
    }
    run = replace(
        read_settings(GeneratorRun, PRESETS / "demo.yaml", changes),
        method=METHODS[name][1],
        data=DataConfig(path=str(data), token_set=None if token_set == "pyramid" else token_set),
    )
    folder = WORK / f"{_slug(name)}-{seed}-{_identity(run, data.name)}"
    if not (folder / "trained.json").exists():
        cpu = time.process_time()
        launch(replace(run, out=str(folder)))
        opened = open_run(folder, arguments.device)
        about = {
            "train_steps": run.trainer.num_steps,
            "train_cpu_seconds": round(time.process_time() - cpu, 1),
            "bits_per_clip": bits_of(opened, dataset.samples("val", bucket.name)).per_clip,
            "num_parameters": opened.record.num_parameters,
        }
        (folder / "trained.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def _looks(
    name: str,
    folder: Path,
    temperature: float,
    data: Path,
    jury: Jury,
    arguments: argparse.Namespace,
) -> Looks:
    """What a run's samples show at a temperature, every caption of the training in turn."""
    file = folder / f"{_slug(name)}-{arguments.samples}-{temperature}.npz"
    if file.exists():
        return Looks.load(file)
    captions = sorted({each for each in jury.train.prompts if each})
    order = numpy_generator(0, "captions").permutation(len(captions))
    prompts = [captions[order[number % len(order)]] for number in range(arguments.samples)]
    run = open_run(folder, arguments.device)
    made = generate(run, [*prompts], _sample_settings(name, temperature, arguments.device))
    looks = jury.look(made.frames, [jury.wanted[each] for each in prompts])
    known = opened_as(data, METHODS[name][0]).samples("train", next(iter(run.record.shapes)))
    copies = copy_share(made.codes, known.gather(np.arange(len(known))))
    looks = replace(looks, right=looks.right | {"copied": np.full(len(prompts), copies)})
    looks.save(file)
    return looks


def _figures(looks: Looks, jury: Jury) -> dict[str, float]:
    shares = {name: float(each.mean()) for name, each in looks.right.items()}
    return shares | {"frechet": jury.distance(looks)}


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
    content = json.dumps([VERSION, data, changed], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _sample_settings(name: str, temperature: float, device: str) -> SampleConfig:
    return SampleConfig(device=device, num_steps=SAMPLED_IN.get(name), temperature=temperature)


def _timed(trials: Sequence[dict[str, Any]], device: str) -> dict[str, dict[str, float]]:
    """The median of seven videos of each, made one by one and decoded, behind one to warm up."""
    runs = {trial["name"]: open_run(WORK / trial["run"], device) for trial in trials}
    made: dict[str, list[Generated]] = {name: [] for name in runs}
    for _ in range(8):
        for name, run in runs.items():
            settings = _sample_settings(name, 1.0, device)
            made[name].append(generate(run, [run.vocabulary.examples[0]], settings))
    return {
        name: {
            "seconds_per_video": median(each.seconds for each in videos[1:]),
            "num_steps": videos[0].num_steps,
        }
        for name, videos in made.items()
    }


def _bounds(data: Path, jury: Jury, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Real clips that nobody saw, these decoded from their codes, and clips of codes that are right
    place by place but know nothing of one another: as many as are told of a seed's samples."""
    size = arguments.samples // 2
    real = jury.real.frames
    random = numpy_generator(0, "bounds")

    def of(frames: np.ndarray, wanted: list[dict[str, str]]) -> dict[str, float]:
        looks = jury.look(frames, wanted)
        starts = range(0, len(frames) - size + 1, size)
        found = [_figures(looks.part(slice(start, start + size)), jury) for start in starts]
        return {key: mean(each[key] for each in found) for key in found[0]}

    bounds = {"real clips, unseen": of(real, jury.real.attributes)}
    for name in TOKEN_SETS:
        number = data.name.rpartition("-")[2]
        tokenizer = load_tokenizer(WORK / f"tokenizer-{name}-{number}", arguments.device)
        bounds[f"their {name} codes, decoded"] = of(
            reconstruct(tokenizer, real), jury.real.attributes
        )
        samples = opened_as(data, name).samples("train", *opened_as(data, name).buckets)
        codes = samples.gather(np.arange(len(samples))).astype(np.int64)
        alone = torch.from_numpy(random.permuted(codes, axis=0)[: len(real)])
        schedule = tokenizer.schedule_for(*real.shape[1:4])
        frames = [
            tokenizer.decode(each.to(arguments.device), schedule).cpu().numpy()
            for each in alone.split(32)
        ]
        bounds[f"{name} codes, each place alone"] = of(
            np.concatenate(frames), jury.real.attributes[: len(alone)]
        )
    return bounds


def _of_seeds(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and standard deviations, at each temperature; the best is the one at which
    other samples have the smallest Frechet distance."""
    numbers = range(len(TEMPERATURES))

    def over(key: str, number: int) -> list[dict[str, float]]:
        return [trial[key][number] for trial in trials]

    best = min(numbers, key=lambda each: mean(one["frechet"] for one in over("chosen_by", each)))
    by_temperature = [
        {
            "temperature": TEMPERATURES[number],
            **{
                name: _spread([each[name] for each in over("figures", number)])
                for name in trials[0]["figures"][0]
            },
        }
        for number in numbers
    ]
    return {
        "num_parameters": trials[0]["num_parameters"],
        "bits_per_clip": _spread([each["bits_per_clip"] for each in trials]),
        "train_cpu_seconds": _spread([each["train_cpu_seconds"] for each in trials]),
        "best": by_temperature[best],
        "by_temperature": by_temperature,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else 0.0}


COLUMNS = (
    *("method", "codes", "steps", "temperature", "class, %", "motion, %", "Frechet"),
    *("at 1.0: class, %", "Frechet", "bits per clip", "ms per video", "M parameters"),
    "train CPU s",
)


def _print(result: dict[str, Any]) -> None:
    for name, facts in result["token_sets"].items():
        print(
            f"{name}: {facts['codes_per_clip']} codes of {facts['codebook_size']} a clip, "
            f"{facts['nominal_bits_per_clip']:.0f} nominal bits"
        )
    print(f"Frechet distances of {result['arguments']['samples'] // 2} clips; means of seeds")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name, found in result["methods"].items():
        best, plain = found["best"], found["by_temperature"][0]
        cells = (
            name,
            METHODS[name][0],
            str(found["num_steps"]),
            str(best["temperature"]),
            _form(best["class"], 100),
            _form(best["motion"], 100),
            _form(best["frechet"]),
            _form(plain["class"], 100),
            _form(plain["frechet"]),
            f"{found['bits_per_clip']['mean']:.0f}",
            f"{1000 * found['seconds_per_video']:.0f}",
            f"{found['num_parameters'] / 1e6:.2f}",
            f"{found['train_cpu_seconds']['mean']:.0f}",
        )
        print("| " + " | ".join(cells) + " |")
    for name, found in result["bounds"].items():
        shares = f"{100 * found['class']:.1f} | {100 * found['motion']:.1f}"
        print(f"| {name} | | | | {shares} | {found['frechet']:.1f} | | | | | | |")


def _form(value: dict[str, float], factor: float = 1.0) -> str:
    return f"{factor * value['mean']:.1f} ± {factor * value['spread']:.1f}"


def _draw(result: dict[str, Any]) -> None:
    """Frechet distance over the time of a video."""
    mpl.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(10, 5.5), facecolor=PAPER)
    axes.set_facecolor(PAPER)
    for name, found in result["methods"].items():
        color = COLORS[list(TOKEN_SETS).index(METHODS[name][0])]
        x, best, plain = (
            1000 * found["seconds_per_video"],
            found["best"],
            found["by_temperature"][0],
        )
        y = best["frechet"]["mean"]
        axes.plot([x, x], [y, plain["frechet"]["mean"]], color=color, alpha=0.4)
        axes.plot(x, plain["frechet"]["mean"], "o", markerfacecolor=PAPER, markeredgecolor=color)
        axes.errorbar(x, y, yerr=best["frechet"]["spread"], color=color, marker="o", capsize=3)
        axes.annotate(
            f"{name} ({found['num_steps']})", (x, plain["frechet"]["mean"]), (-4, 8),
            textcoords="offset points", color=color, fontsize=9, rotation=60,
        )  # fmt: skip
    floor = result["bounds"]["real clips, unseen"]["frechet"]
    axes.axhline(floor, color=FAINT, linestyle="--", linewidth=1)
    axes.annotate("real clips, unseen", (axes.get_xlim()[0], floor), color=FAINT, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([10, 20, 30, 50, 75, 100, 150, 200, 300, 500]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.16)
    axes.set_xlabel("milliseconds per video, batch 1", color=INK)
    axes.set_ylabel("Frechet distance of samples, judge's features", color=INK)
    title = "Quality against time, with steps: filled at the best temperature, hollow at 1"
    axes.set_title(title, color=INK)
    for name, color in zip(TOKEN_SETS, COLORS):
        axes.plot([], [], "o", color=color, label=f"codes of a {name}")
    axes.legend(labelcolor=INK, facecolor=PAPER, edgecolor=FAINT)
    axes.tick_params(colors=INK)
    axes.grid(color=FAINT, alpha=0.2)
    figure.tight_layout()
    figure.savefig(OUT / "quality.png", dpi=110, facecolor=PAPER)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
