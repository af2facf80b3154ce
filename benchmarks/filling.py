"""What is a gap filled from? Held-out clips with a hole, filled from both sides and from the left.

    python benchmarks/filling.py             make bench-filling; minutes after bench-quality
    python benchmarks/filling.py --quick     short trainings, few clips

Held-out clips of the demo's digits lose their middle frame, their middle columns or three tenths of
their cells. Three fill them, without a caption (or, with --captions, told by the clip's own what
there is to be seen), a cell a pass: ARPG, which is given all
that is left; the same weights, shown only the cells before each one in raster order; and a raster
model, which sees no others. For the cells of the hole:

bits     of the real codes, a cell after another, each from the real ones that its way sees
likely   how often the likeliest code, so asked, is the real one
right    how often the drawn code is the real one, where holes are filled with what was drawn before
PSNR     of the hidden pixels after decoding, beside the tokenizer's own and a plain blur

Spreads are standard errors over clips. The runs are those of `make bench-quality`, and are trained
when they are missing. Writes a table, `benchmarks/out/filling.json` and `filling.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_runs import (
    NUM_TOKENS,
    OUT,
    QUICK_TOKENS,
    WORK,
    facts,
    opened_as,
    quality_data,
    trained,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.shards import open_dataset
from tokenizer.scales import Schedule
from training.config import GuidanceConfig, SampleConfig
from training.draws import numpy_generator
from training.generator import by_cell
from training.given import Given
from training.known_region import known_cells, painted_over
from training.pictures import contact_sheet, save_png
from training.run import OpenedRun, open_run
from training.sampler import sampling
from training.teacher_forcing import code_logits

BATCH = 30
SHOWN = 3
HIDDEN_COLOR = (232, 70, 130)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Held-out clips: their codes, pixels and captions, the same clip at the same place."""

    codes: Tensor
    frames: np.ndarray
    captions: list[str | None]
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class Way:
    """How holes are filled: `sequence_of` puts cells in the order in which they are asked for."""

    model: str
    sequence_of: Callable[[np.ndarray, int], np.ndarray]
    fill: Callable[[OpenedRun, Clips, np.ndarray, int], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short trainings, few clips")
    parser.add_argument("--seeds", type=int, default=3, help="fillings of each hole")
    parser.add_argument("--captions", action="store_true", help="fill under the clips' captions")
    parser.add_argument("--clips", type=int, default=120, help="most clips to fill")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="codes seen in training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.clips, arguments.tokens = 1, 20, QUICK_TOKENS
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    data = quality_data(arguments.quick, arguments.device)
    runs = {
        name: open_run(trained(name, 0, data, arguments.tokens, arguments.device), arguments.device)
        for name in dict.fromkeys(way.model for way in WAYS.values())
    }
    clips = _clips(data, runs["raster"], arguments.clips)
    if not arguments.captions:
        clips = replace(clips, captions=[None] * len(clips.captions))
    results, pictures = {}, {}
    for hole in HOLES:
        print(hole, file=sys.stderr, flush=True)
        results[hole], pictures[hole] = _of_hole(hole, runs, clips, arguments.seeds)
    result = {
        **facts(arguments, arguments.device),
        "num_clips": len(clips.codes),
        "holes": results,
    }
    (OUT / "filling.json").write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    _draw(pictures)
    print(f"{OUT / 'filling.json'}, {OUT / 'filling.png'}")
    return 0


def _clips(data: Path, run: OpenedRun, limit: int) -> Clips:
    """Held-out clips of the grid, each with its real pixels."""
    (bucket,) = run.record.shapes
    coded = opened_as(data, "grid").samples("val", bucket)
    real = open_dataset(data / "pixels").samples("val", bucket)
    chosen = np.arange(min(limit, len(coded)))
    place = {name: index for index, name in enumerate(real.select(np.arange(len(real))).names())}
    same = [place[name] for name in coded.select(chosen).names()]
    device = next(run.generator.parameters()).device
    return Clips(
        codes=torch.from_numpy(coded.gather(chosen).astype(np.int64)).to(device),
        frames=real.gather(np.array(same)),
        captions=[each["caption"] for each in coded.metadata(chosen)],
        schedule=run.schedule(bucket),
    )


def _middle_frame(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.indices(shape)[0] == shape[0] // 2


def _middle_columns(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    at, width = np.indices(shape)[2], shape[2]
    return (at >= width // 4) & (at < width - width // 4)


def _scattered(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Three tenths of the cells, others for another seed."""
    count = math.prod(shape)
    chosen = numpy_generator(seed, "hole").permutation(count) < round(0.3 * count)
    return chosen.reshape(shape)


HOLES = {
    "middle frame": _middle_frame,
    "middle columns": _middle_columns,
    "3 cells of 10": _scattered,
}
"""Hidden cells, bool of a grid's shape, by a seed."""


def _around_first(hidden: np.ndarray, number: int) -> np.ndarray:
    """What is known, then the hole in an order of the clip's own."""
    order = numpy_generator(0, "filling", number).permutation(np.flatnonzero(hidden))
    return np.concatenate([np.flatnonzero(~hidden), order])


def _raster(hidden: np.ndarray, number: int) -> np.ndarray:
    return np.arange(len(hidden))


def _settings(hidden: np.ndarray, seed: int, is_random: bool) -> SampleConfig:
    """As trained, unguided; random orders a cell a pass."""
    steps = len(hidden) if is_random else None
    return SampleConfig(seed=seed, num_steps=steps, guidance=GuidanceConfig(scale=1.0))


def _fill(run: OpenedRun, clips: Clips, hidden: np.ndarray, seed: int) -> Tensor:
    """By the sampling loop as it is: all that the method's order lets a cell see."""
    return sampling(
        run.generator,
        _prompts(run, clips.captions),
        clips.schedule,
        _settings(hidden, seed, run.config.method.is_random),
        range(len(clips.codes)),
        given=Given(clips.codes, ~hidden),
    ).codes()


def _fill_from_the_left(run: OpenedRun, clips: Clips, hidden: np.ndarray, seed: int) -> Tensor:
    """Any order's model, shown nothing but the cells before each one in raster order."""
    filled = torch.where(torch.from_numpy(hidden).to(clips.codes.device), 0, clips.codes)
    cells = np.arange(len(hidden))
    for is_hidden, group in groupby(cells, key=lambda cell: hidden[cell]):
        gap = list(group)
        if not is_hidden:
            continue
        clip, steps = sampling(
            run.generator,
            _prompts(run, clips.captions),
            clips.schedule,
            _settings(hidden, seed, is_random=True),
            range(len(filled)),
            sequence=torch.from_numpy(cells)[None].to(filled.device),
            given=Given(filled, cells < gap[0]),
        )
        for _ in gap:
            next(steps)
        filled[:, gap] = clip.codes[:, gap]
    return filled


WAYS = {
    "ARPG, both sides": Way(model="ARPG, 8 steps", sequence_of=_around_first, fill=_fill),
    "ARPG, the left": Way(model="ARPG, 8 steps", sequence_of=_raster, fill=_fill_from_the_left),
    "raster, the left": Way(model="raster", sequence_of=_raster, fill=_fill),
}


BOUNDS = ("the real codes, decoded", "nothing: a blur of what is near")


def _of_hole(
    hole: str, runs: dict[str, OpenedRun], clips: Clips, seeds: int
) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Figures of every way to fill a hole, and its pictures: real, hidden, filled of some clips."""
    grid = clips.schedule.grid
    assert grid is not None
    run = runs["raster"]
    stride = run.tokenizer.config.temporal_stride
    rebuilt = _decoded(run, clips.codes, clips.schedule)
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in (*BOUNDS, *WAYS)}
    pictures = [clips.frames[:SHOWN]]
    for seed in range(seeds):
        cells = HOLES[hole](grid, seed)
        hidden, mask = cells.ravel(), _pixels(cells, clips.frames.shape[1:4], stride)
        assert (known_cells(clips.schedule, ~mask, stride) == ~hidden).all()
        blurred = np.stack([painted_over(each, ~mask) for each in clips.frames])
        for name, frames in zip(BOUNDS, (rebuilt, blurred)):
            found[name].setdefault("psnr", []).append(_hidden_psnr(frames, clips.frames, mask))
        if seed == 0:
            color = np.array(HIDDEN_COLOR, np.uint8)
            pictures.append(np.where(mask[..., None], color, clips.frames[:SHOWN]))
        for name, way in WAYS.items():
            run = runs[way.model]
            filled = way.fill(run, clips, hidden, seed)
            assert torch.equal(filled[:, ~hidden], clips.codes[:, ~hidden])
            frames = _decoded(run, filled, clips.schedule)
            right = (filled == clips.codes)[:, hidden].double().mean(dim=1).cpu().numpy()
            values = {"right": right, "psnr": _hidden_psnr(frames, clips.frames, mask)}
            for key, value in (values | _asked(run, clips, hidden, way)).items():
                found[name].setdefault(key, []).append(value)
            if seed == 0:
                pictures.append(np.where(mask[..., None], frames, clips.frames)[:SHOWN])
    per_clip = {
        name: {key: np.mean(of_seeds, axis=0) for key, of_seeds in values.items()}
        for name, values in found.items()
    }
    both, *others = WAYS
    report = {
        "hidden_cells": int(cells.sum()),
        "num_filled": int(cells.sum()) * len(clips.codes) * seeds,
        "filled": {
            name: {key: _spread(each) for key, each in values.items()}
            for name, values in per_clip.items()
        },
        "both_sides_minus": {
            name: {key: _spread(per_clip[both][key] - each) for key, each in per_clip[name].items()}
            for name in others
        },
    }
    return report, pictures


@torch.no_grad()
def _asked(run: OpenedRun, clips: Clips, hidden: np.ndarray, way: Way) -> dict[str, np.ndarray]:
    """Bits of a hole's cell and how often the likeliest code is right, a clip each."""
    bits, likely = [], []
    for start in range(0, len(clips.codes), BATCH):
        numbers = range(start, min(start + BATCH, len(clips.codes)))
        codes = clips.codes[start : numbers.stop]
        drawn = np.stack([way.sequence_of(hidden, number) for number in numbers])
        sequence = torch.from_numpy(drawn).to(codes.device)
        by_place = code_logits(
            run.generator,
            run.tokenizer.quantizer,
            codes,
            _prompts(run, clips.captions[start : numbers.stop]),
            sequence,
            clips.schedule,
        )
        logits = by_cell(by_place.float(), sequence)[:, hidden]
        of_real = logits.log_softmax(dim=-1).gather(2, codes[:, hidden, None])[..., 0]
        bits.append(-of_real.double().mean(dim=1) / math.log(2))
        likely.append((logits.argmax(dim=-1) == codes[:, hidden]).double().mean(dim=1))
    return {"bits": torch.cat(bits).cpu().numpy(), "likely": torch.cat(likely).cpu().numpy()}


def _prompts(run: OpenedRun, captions: Sequence[str | None]) -> Tensor:
    device = next(run.generator.parameters()).device
    return torch.tensor([run.vocabulary.encode(each, cut=True) for each in captions], device=device)


def _pixels(cells: np.ndarray, shape: tuple[int, int, int], stride: int) -> np.ndarray:
    """The pixels that hidden cells stand for."""
    rows = np.arange(shape[1]) * cells.shape[1] // shape[1]
    columns = np.arange(shape[2]) * cells.shape[2] // shape[2]
    frames = -(-np.arange(shape[0]) // stride)
    return cells[frames][:, rows][:, :, columns]


def _decoded(run: OpenedRun, codes: Tensor, schedule: Schedule) -> np.ndarray:
    parts = [run.tokenizer.decode(part, schedule).cpu().numpy() for part in codes.split(BATCH)]
    return np.concatenate(parts)


def _hidden_psnr(frames: np.ndarray, real: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In dB, of the hidden pixels of each clip."""
    error = (frames[:, mask].astype(np.float64) - real[:, mask]) ** 2
    return 10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2)), 1e-3))


def _spread(values: np.ndarray) -> dict[str, float]:
    """The mean over clips and its standard error."""
    return {
        "mean": float(values.mean()),
        "error": float(values.std(ddof=1) / math.sqrt(len(values))),
    }


def _print(result: dict[str, Any]) -> None:
    console = Console(width=max(Console().width, 130))
    table = Table(
        title=f"{result['num_clips']} held-out clips, {result['arguments']['seeds']} fillings each",
        title_justify="left",
    )
    table.add_column("hole")
    table.add_column("filled from")
    for column in ("bits per code", "likeliest is right", "drawn is right", "PSNR, dB"):
        table.add_column(column, justify="right")
    for hole, found in result["holes"].items():
        for name, values in found["filled"].items():
            table.add_row(
                f"{hole} ({found['hidden_cells']})",
                name,
                *(_form(values.get(key), key) for key in ("bits", "likely", "right", "psnr")),
                end_section=name == list(found["filled"])[-1],
            )
    console.print(table)
    for hole, found in result["holes"].items():
        for name, values in found["both_sides_minus"].items():
            shown = ", ".join(
                f"{_form(values[key], key, '+')} {unit}"
                for key, unit in (("right", "right"), ("bits", "bits"), ("psnr", "dB"))
            )
            console.print(f"{hole}, both sides minus {name}: {shown}")


def _form(value: dict[str, float] | None, key: str, sign: str = "") -> str:
    if value is None:
        return ""
    digits = ".1%" if key in ("likely", "right") else ".2f"
    return f"{value['mean']:{sign}{digits}} ± {value['error']:{digits}}"


def _draw(pictures: dict[str, list[list[np.ndarray]]]) -> None:
    rows = [
        (hole if number == 0 else "", [column[number] for column in columns])
        for hole, columns in pictures.items()
        for number in range(len(columns[0]))
    ]
    sheet = contact_sheet(
        rows,
        title="Gaps of held-out clips, filled",
        columns=("real", "hidden", *(f"by {name}" for name in WAYS)),
        frames_per_clip=5,
        frame_size=56,
    )
    save_png(sheet, OUT / "filling.png", {"generated": "true", "real_clips": "first column"})


if __name__ == "__main__":
    sys.exit(main())
