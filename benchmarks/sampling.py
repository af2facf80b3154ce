"""How fast methods generate a video of 5 x 16 x 16 codes, beside cell by cell.

    python benchmarks/sampling.py                     make bench-sampling
    python benchmarks/sampling.py --quick             a small model, to see that it runs
    python benchmarks/sampling.py --device cuda       compiled steps beside eager ones, 9 minutes
    python benchmarks/sampling.py --compiled          the same beside eager on a CPU

One transformer of 12 layers x 512 with random weights, by class, without guidance; next scale makes
a pyramid over the same latent grid (see PYRAMID). Each method, batch size and precision is a
process of its own on one thread, and seconds on a CPU are those of that thread. The bound on a
method's speed-up is that of its transformer alone:

    seconds of the blocks on 1 row, for every step of raster
    --------------------------------------------------------
    seconds of the blocks on n rows, for every step of it

both on caches as full as they are in that step, measured in the same processes; raster's are those
of every 40th step. So the share of the bound says what embedding, heads, drawing and the loop cost.
Memory is that of weights and cache. "Full forward" feeds every row again in each step: a few steps,
evenly spaced, are timed and stand for all. Compiled steps run on a static cache (on CUDA as
graphs); their seconds are without compiling, which is told apart. Where a machine multiplies
bfloat16 more slowly than float32, bfloat16 is run at batch size 1 only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"
GRID = (5, 16, 16)
PYRAMID = (1, 2, 4, 8, 16)
CODEBOOK_SIZE = 4096
SETTINGS: dict[str, dict[str, Any]] = {
    "raster": {"name": "raster"},
    "PAR-4": {"name": "par", "regions": (1, 2, 2)},
    "PAR-16": {"name": "par", "regions": (1, 4, 4)},
    "NAR": {"name": "nar"},
    "ARPG-32": {"name": "arpg", "num_steps": 32},
    "next scale": {"name": "next_scale"},
}
COLUMNS = {
    "method": "{}",
    "batch": "{}",
    "precision": "{}",
    "steps": "{}",
    "seconds_per_video": "{:.3f}",
    "speed_up": "{:.1f}",
    "bound": "{:.1f}",
    "share_of_bound": "{:.2f}",
    "memory_mib": "{:.0f}",
    "full_forward": "{:.0f}x",
    "compiled": "{:.3f}",
    "compiled_gain": "{:.1f}x",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="raster: one (default: 3)")
    parser.add_argument("--quick", action="store_true", help="2 layers x 64, one round")
    parser.add_argument("--compiled", action="store_true", help="compiled steps too (cuda: always)")
    parser.add_argument(
        "--minutes", type=float, help="end what runs after so many (default: cuda 8.5, else none)"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_case(json.loads(arguments.case), arguments)))
        return 0
    on_cuda = arguments.device.startswith("cuda")
    started, limit = time.monotonic(), arguments.minutes or (8.5 if on_cuda else math.inf)
    slow = arguments.device == "cpu" and not arguments.quick and _is_slow_in_bfloat16()
    cases: list[dict[str, Any]] = []
    for precision in sorted(arguments.precisions, reverse=not on_cuda):
        for batch_size in arguments.batch_sizes:
            if slow and precision == "bfloat16" and batch_size > 1:
                continue
            group = []
            for method in arguments.methods:
                left = started + 60 * limit - time.monotonic()
                case = {"method": method, "batch": batch_size, "precision": precision}
                done = _run_case(case, left) if left > 0 else None
                if done is None:
                    print(f"no time for {method} at batch {batch_size} in {precision}")
                else:
                    group.append(done)
            _compare(group)
            _show(group, with_head=not cases)
            cases += group
    if not cases:
        return 1
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {cases[0]['device']}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": cases[0]["torch"],
        "model": cases[0]["model"],
        "pyramid": [list(PYRAMID), cases[0]["pyramid_codes"]],
        "bfloat16_is_slower_than_float32": slow,
        "cases": cases,
    }
    OUT.mkdir(exist_ok=True)
    name = "sampling_quick" if arguments.quick else "sampling"
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _run_case(case: dict[str, Any], limit: float) -> dict[str, Any] | None:
    """The figures of a case; None when it took more than `limit` seconds and was ended."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=None if math.isinf(limit) else limit,
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout)


def _compare(group: list[dict[str, Any]]) -> None:
    """Speed-ups over raster, where the group has it."""
    raster = next((case for case in group if case["method"] == "raster"), None)
    for case in group if raster else ():
        assert raster is not None
        case["speed_up"] = raster["seconds_per_video"] / case["seconds_per_video"]
        case["bound"] = raster["blocks_seconds"] / case["blocks_seconds"]
        case["share_of_bound"] = case["speed_up"] / case["bound"]


def _show(group: list[dict[str, Any]], with_head: bool) -> None:
    if with_head and group:
        print("| " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|")
    for case in group:
        cells = [
            form.format(case[name]) if case.get(name) is not None else ""
            for name, form in COLUMNS.items()
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _case(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from tokenizer.quantizer import MultiScaleQuantizer
    from tokenizer.quantizer_config import QuantizerConfig
    from tokenizer.scales import image_and_clip, single_grid
    from training.config import GuidanceConfig, ModelConfig, SampleConfig
    from training.generator import Generator
    from training.loop_steps import cache_rows, loop_steps
    from training.method_config import MethodConfig
    from training.partial import feature_channels
    from training.sampler import layout_of, sampling
    from training.samples import in_precision
    from training.vocabulary import Vocabulary

    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    pyramid = image_and_clip(GRID[0], PYRAMID)
    schedule = pyramid if case["method"] == "next scale" else single_grid(*GRID)
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(codebook_size=CODEBOOK_SIZE, codebook_dim=32, num_phi=1)
    )
    quantizer.codebook.set_codes(torch.randn(CODEBOOK_SIZE, 32))
    classes = tuple(str(number) for number in range(101))
    width, depth = (64, 2) if arguments.quick else (512, 12)
    generator = Generator(
        ModelConfig(width=width, depth=depth, heads=width // 64),
        MethodConfig(**SETTINGS[case["method"]]),
        schedule,
        Vocabulary("class", names=classes, length=1, examples=classes),
        CODEBOOK_SIZE,
        feature_channels(quantizer, schedule),
    )
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    generator = in_precision(generator.to(device), case["precision"])
    generator = generator.eval().requires_grad_(False)
    quantizer = quantizer.to(device).eval().requires_grad_(False)
    batch_size = case["batch"]
    settings = SampleConfig(guidance=GuidanceConfig(scale=1.0))
    prompts = torch.arange(batch_size, device=device)[:, None]
    layout = layout_of(generator, schedule, settings)
    steps = loop_steps(layout, device)
    rows = cache_rows(steps)

    def sample(settings: SampleConfig = settings) -> None:
        sampling(generator, prompts, schedule, settings, range(batch_size), quantizer).codes()

    @torch.no_grad()
    def blocks(number: int) -> None:
        """The transformer alone, on the rows of one step."""
        step = steps[number]
        cache.cut(len(step.seen.step) - len(step.rows.step))
        generator.transformer(
            inputs[:, : len(step.rows.step)],
            step.seen.masks(len(step.rows.step)),
            num_context=step.rows.num_context,
            cache=cache,
        )

    is_raster = case["method"] == "raster"
    cache = generator.transformer.new_cache(batch_size, rows)
    weight = next(generator.transformer.parameters())
    cache.keys.normal_()
    cache.values.normal_()
    most = max(len(step.rows.step) for step in steps)
    inputs = torch.randn(batch_size, most, width, device=device, dtype=weight.dtype)
    every = 40 if is_raster else 1
    chosen = range(every // 2, len(steps), every)
    warm_up = [0, 1] if is_raster else range(len(steps))
    for number in warm_up:
        blocks(number)
    whole, alone = [], []
    for _ in range(1 if is_raster or arguments.quick or batch_size > 1 else arguments.rounds):
        whole.append(_seconds(sample, device))
        once = sum(_seconds(lambda each=number: blocks(each), device) for number in chosen)
        alone.append(once * len(steps) / len(chosen))
    seconds = statistics.median(whole)
    weights = sum(each.nbytes for each in generator.parameters())
    full = None
    if batch_size == 1:
        full = _full_forward(generator, prompts, schedule, layout, device) / seconds
    compiled: dict[str, float] = {}
    if arguments.compiled or (device.type == "cuda" and weight.dtype == torch.bfloat16):
        fast = replace(settings, compile=True)
        first, _ = _seconds(lambda: sample(fast), device), sample(fast)
        again = statistics.median(_seconds(lambda: sample(fast), device) for _ in range(3))
        compiled = {
            "compiled": again / batch_size,
            "compiled_gain": seconds / again,
            "seconds_of_compiling": first - again,
        }
    return {
        **case,
        **compiled,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "one thread of a CPU",
        "torch": torch.__version__,
        "model": f"{depth} layers x {width}, {CODEBOOK_SIZE} codes",
        "pyramid_codes": pyramid.num_tokens,
        "codes": schedule.num_tokens,
        "steps": len(steps),
        "seconds_per_video": seconds / batch_size,
        "blocks_seconds": statistics.median(alone) / batch_size,
        "blocks_share": statistics.median(alone) / seconds,
        "seconds_of_each_round": [round(each, 4) for each in whole],
        "weights_mib": weights / 2**20,
        "cache_mib": cache.num_bytes / 2**20,
        "memory_mib": (weights + cache.num_bytes) / 2**20,
        "full_forward": full,
    }


def _full_forward(
    generator: Any, prompts: Any, schedule: Any, layout: Any, device: Any, count: int = 5
) -> float:
    """Seconds of a clip by a plain full forward pass per step, from `count` of its steps."""
    import torch

    from training.generator import Known
    from training.loop_steps import loop_steps

    steps = loop_steps(layout, device, cached=False)
    features = None
    if generator.num_features:
        features = torch.zeros(1, schedule.num_tokens, generator.num_features, device=device)
    codes = torch.zeros(1, schedule.num_tokens, dtype=torch.int64, device=device)
    known = Known(torch.from_numpy(layout.order.sequence)[None].to(device), codes, features)

    @torch.no_grad()
    def run(number: int) -> None:
        step = steps[number]
        hidden = generator.hidden(step.rows, step.seen, generator.condition(prompts), known)
        generator.logits(hidden, step.sources)

    chosen = [int((number + 0.5) * len(steps) / count) for number in range(count)]
    run(0)
    spent = [_seconds(lambda each=number: run(each), device) for number in chosen]
    return statistics.mean(spent) * len(steps)


def _is_slow_in_bfloat16() -> bool:
    import torch

    seconds = {}
    for precision in (torch.float32, torch.bfloat16):
        x, y = torch.randn(128, 512).to(precision), torch.randn(512, 512).to(precision)
        _ = x @ y
        seconds[precision] = min(
            _seconds(lambda x=x, y=y: x @ y, torch.device("cpu")) for _ in range(5)
        )
    return seconds[torch.bfloat16] > seconds[torch.float32]


def _seconds(program: Callable[[], Any], device: Any) -> float:
    """On a CPU those of its one thread, whatever else runs beside it."""
    import torch

    if device.type == "cpu":
        started = time.thread_time()
        program()
        return time.thread_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    program()
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
