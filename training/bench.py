"""How fast training is: the real loop beside a plain one of the same model, and the machine's peak.

    report = bench_train(BenchConfig(), say=print)
    report["loop"]["tokens_per_second"], report["loop_over_plain"]["seconds"], report["mfu"]

The loop is what `tessera train` runs in one process: shards of random codes, draws, guard, metrics,
a checkpoint at the end. The plain one (`plain_loop`) has its batches in memory. Rounds of the two
follow one another, A B B A, so that a slow minute falls on both; `loop_over_plain` is the ratio of
medians over all rounds, with that of each round beside it. CPU seconds are those of all threads of
the process, the reader's included; by them, too, a CPU's share of its peak is told, as it would be
were all threads busy all the time.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tokenizer.settings import to_dict
from training.bench_config import BenchConfig
from training.bench_data import write_random_dataset
from training.bench_rounds import Round, loop_round, plain_round
from training.config import ConditionConfig, DataConfig, GeneratorRun, ModelConfig
from training.data import open_loader, open_sources
from training.flops import measured_matmul_flops, peak_flops, training_flops
from training.loop_config import OptimizerConfig, ParallelConfig, ScheduleConfig, TrainerConfig
from training.method_config import MethodConfig
from training.run import pick_device
from training.tasks.generator import GeneratorTask
from training.trace import spent_in

_MOST_READ = 200  # batches over which the reader is measured
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bench_train(
    config: BenchConfig,
    say: Callable[[str], None],
    told: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """The figures of a model on a device, as plain JSON values; `say` takes lines on the way.

    `told` is given them once both loops are measured, before more steps are run to be profiled.
    """
    device = torch.device(pick_device(config.device))
    dtype = _TYPES[config.precision]
    loop: list[Round] = []
    plain: list[Round] = []
    peaks: list[float] = []
    with TemporaryDirectory(prefix="tessera-bench-") as temporary:
        folder = Path(temporary)
        data = folder / "data"
        say(f"writing {config.clips:,} clips of {math.prod(config.grid):,} codes")
        write_random_dataset(data, config.clips, config.grid, config.codebook_size)
        run = _run(config, data, folder / "run")
        for number in range(config.rounds):
            peaks.append(measured_matmul_flops(device, dtype))
            pair = [(loop_round, loop, "loop"), (plain_round, plain, "plain loop")]
            for measure, measured, name in pair if number % 2 == 0 else reversed(pair):
                measured.append(measure(run, config.dropped, device))
                last = measured[-1]
                say(
                    f"round {number + 1} of {config.rounds}, {name}: {1e3 * last.seconds:,.1f} ms "
                    f"a step, {1e3 * last.cpu_seconds:,.1f} ms of CPU"
                )
        report = _made_by(config, device) | _figures(run, device, loop, plain, peaks)
        told(report)
        if config.profiled_steps:
            say(f"profiling {config.profiled_steps} steps")
            report["time"] = _time(config, run, report["loop"]["seconds_per_step"])
    return report


def _run(config: BenchConfig, data: Path, out: Path) -> GeneratorRun:
    """What is trained, as `tessera train` would be told."""
    num_steps = config.dropped + config.steps
    return GeneratorRun(
        out=str(out),
        data=DataConfig(path=str(data)),
        method=MethodConfig(name=config.method),
        model=ModelConfig(width=config.width, depth=config.depth, heads=config.heads),
        condition=ConditionConfig(kind=config.condition),
        optimizer=OptimizerConfig(
            matrices="adamw", matrix_learning_rate=3e-4, learning_rate=3e-4, weight_decay=0.05
        ),
        schedule=ScheduleConfig(kind="constant", warmup_steps=0),
        trainer=TrainerConfig(
            num_steps=num_steps,
            global_batch_size=config.batch_size,
            device=config.device,
            precision=config.precision,
            log_every=math.gcd(config.dropped, config.steps),
            checkpoint_every=num_steps,
            preview_every=0,
            tensorboard=False,
        ),
        parallel=ParallelConfig(compile=config.compile),
    )


def _made_by(config: BenchConfig, device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "device": torch.cuda.get_device_name(device) if on_cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": to_dict(config),
    }


def _processor() -> str:
    """What Linux calls the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _figures(
    run: GeneratorRun,
    device: torch.device,
    loop: Sequence[Round],
    plain: Sequence[Round],
    peaks: Sequence[float],
) -> dict[str, Any]:
    task = GeneratorTask(run, "cpu")
    generator, clips = task.generator, run.trainer.global_batch_size
    flops = clips * training_flops(generator, generator.schedule).total
    tokens = clips * generator.schedule.num_tokens
    own, other = (_of_rounds(rounds, tokens, flops) for rounds in (loop, plain))
    own["data_wait_share"] = median(each.data_wait_share for each in loop)
    reading = _reader_cpu_seconds(run)
    published = peak_flops(device, _TYPES[run.trainer.precision])
    per_second = flops / own["seconds_per_step"]
    by_cpu = flops / own["cpu_seconds_per_step"] * torch.get_num_threads()
    return {
        "num_parameters": task.record.num_parameters,
        "tokens_per_step": tokens,
        "flops_per_step": flops,
        "loop": own,
        "plain": other,
        "loop_over_plain": {
            name: {
                "of_medians": own[f"{name}_per_step"] / other[f"{name}_per_step"],
                "of_rounds": [
                    getattr(a, name) / getattr(b, name) for a, b in zip(loop, plain, strict=True)
                ],
            }
            for name in ("seconds", "cpu_seconds")
        },
        "reader": {
            "cpu_seconds_per_step": reading,
            "share_of_step_cpu": reading / own["cpu_seconds_per_step"],
        },
        "measured_matmul_flops": max(peaks),
        "share_of_measured_matmul": per_second / max(peaks),
        "share_by_cpu_time": by_cpu / max(peaks) if device.type == "cpu" else None,
        "published_flops": published,
        "mfu": None if published is None else per_second / published,
    }


def _of_rounds(rounds: Sequence[Round], tokens: int, flops: float) -> dict[str, Any]:
    each = [seconds for one in rounds for seconds in one.each_seconds]
    seconds = median(each)
    known = [one.peak_bytes for one in rounds if one.peak_bytes is not None]
    return {
        "seconds_per_step": seconds,
        "least_and_most_seconds": [min(each), max(each)],
        "cpu_seconds_per_step": median(one.cpu_seconds for one in rounds),
        "tokens_per_second": tokens / seconds,
        "teraflops": flops / seconds / 1e12,
        "peak_memory_mib": max(known) / 2**20 if known else None,
        "loss": rounds[-1].loss,
    }


def _reader_cpu_seconds(run: GeneratorRun) -> float:
    """Of the thread that reads a batch; bytes are checked when they are first seen, as in a run."""
    _, sources = open_sources(run.data)
    loader = open_loader(sources, run.data, run.trainer)
    (bucket,) = sources[0].samples.values()
    count = max(1, min(_MOST_READ, len(bucket) // run.trainer.global_batch_size - 1))
    loader.batch(0)
    started = time.thread_time()
    for step in range(1, 1 + count):
        loader.batch(step)
    return (time.thread_time() - started) / count


def _time(config: BenchConfig, run: GeneratorRun, step_seconds: float) -> dict[str, Any]:
    """What steps are spent on, of a run of its own.

    Kernels last as long as without a profiler, so what a GPU is idle is what they leave of a step
    that was not profiled. On a CPU it is what operators leave of the profiled ones: Python's share.
    """
    assert run.out is not None
    first, last = config.dropped + 1, config.dropped + config.profiled_steps
    trainer = replace(
        run.trainer,
        num_steps=last,
        log_every=last,
        checkpoint_every=last,
        profile_steps=(first, last),
    )
    loop_round(replace(run, trainer=trainer), config.dropped, torch.device(config.device))
    (trace,) = (Path(run.out) / "profile").iterdir()
    spent = spent_in(trace)
    if config.trace is not None:
        shutil.copy(trace, config.trace)
    count = config.profiled_steps
    whole = step_seconds if spent.of == "kernels" else spent.span / count
    by_category = {name: seconds / count for name, seconds in spent.by_category.items()}
    return {
        "of": spent.of,
        "seconds_per_step": by_category | {"idle": max(0.0, whole - sum(by_category.values()))},
        "longest": [
            {"name": name, "seconds_per_step": seconds / count} for name, seconds in spent.longest
        ],
    }
