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
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from demo_runs import (
    METHODS,
    NUM_TOKENS,
    OUT,
    QUICK_TOKENS,
    TOKEN_SETS,
    WORK,
    facts,
    num_clips,
    opened_as,
    quality_data,
    slug,
    trained,
)
from jury import Jury, Looks
from quality_report import print_table, save_plot

from tokenizer.folder import load_tokenizer
from training.config import SampleConfig
from training.draws import numpy_generator
from training.evaluate import reconstruct
from training.likeness import copy_share
from training.run import open_run
from training.samples import Generated, generate

TEMPERATURES = (1.0, 0.8, 0.6, 0.4)
SAMPLED_IN = {"ARPG, 24 steps": 24}
"""What only samples otherwise, by the other's weights."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, short trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="codes seen in training")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--samples", type=int, default=540, help="clips to judge per seed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.tokens, arguments.samples = 1, QUICK_TOKENS, 80
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    data = quality_data(arguments.quick, arguments.device)
    jury = Jury(data, num_clips(arguments.quick))
    trials = []
    for seed in range(arguments.seeds):
        for name in arguments.only:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            trials.append(_trial(name, seed, data, jury, arguments))
    timed = _timed(trials[: len(arguments.only)], arguments.device)
    result = {
        **facts(arguments, arguments.device),
        "token_sets": {name: _token_set(data, name) for name in TOKEN_SETS},
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
    print_table(result)
    save_plot(result, OUT / "quality.png")
    print(f"{OUT / 'quality.json'}, {OUT / 'quality.png'}")
    return 0


def _token_set(folder: Path, name: str) -> dict[str, Any]:
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


def _trial(
    name: str, seed: int, data: Path, jury: Jury, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One training and what its samples show; read from its folder where it was done before."""
    folder = trained(name, seed, data, arguments.tokens, arguments.device)
    looks = [_looks(name, folder, each, data, jury, arguments) for each in TEMPERATURES]
    return {
        "name": name,
        "seed": seed,
        "run": folder.name,
        **json.loads((folder / "trained.json").read_text()),
        "chosen_by": [_figures(each.part(slice(None, None, 2)), jury) for each in looks],
        "figures": [_figures(each.part(slice(1, None, 2)), jury) for each in looks],
    }


def _looks(
    name: str,
    folder: Path,
    temperature: float,
    data: Path,
    jury: Jury,
    arguments: argparse.Namespace,
) -> Looks:
    """What a run's samples show at a temperature, every caption of the training in turn."""
    file = folder / f"{slug(name)}-{arguments.samples}-{temperature}.npz"
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


if __name__ == "__main__":
    sys.exit(main())
