"""The command that says how fast training is: `tessera bench train`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tokenizer.settings import UserError, add_flags, given_flags, read_settings
from training.bench_config import ON_CUDA, BenchConfig

_TRAIN = """\
examples:
  tessera bench train
  tessera bench train --method arpg --rounds 8 --out bench.json
  tessera bench train --device cuda                 24 x 1024, sequence 1,280, bfloat16, compiled
  tessera bench train --device cuda --batch_size 64 --trace steps.json.gz

The loop of `tessera train` on shards of random codes, beside a plain loop of the same model with
its batches in memory; and what the machine multiplies at most.
"""
_ROWS = (("loop", "loop"), ("plain loop", "plain"))
_COLUMNS = (
    "",
    "ms a step",
    "range",
    "CPU ms",
    "tokens/s",
    "TFLOP/s",
    "waits for data",
    "memory, MiB",
)


def register(commands: Any) -> None:
    """Adds the group `bench`."""
    parser = commands.add_parser(
        "bench",
        help="how fast training is on this machine",
        description="How fast this machine does what Tessera does.",
    )
    parser.set_defaults(run=lambda arguments: parser.print_help() or 2)
    group = parser.add_subparsers(title="commands", metavar="COMMAND")
    train = group.add_parser(
        "train",
        help="tokens a second, share of the machine's peak, beside a plain loop",
        description="Tokens a second of training a generator, its share of the machine's peak, and "
        "what a plain loop of the same model takes.",
        epilog=_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(train, BenchConfig)
    train.set_defaults(run=_bench_train)


def _bench_train(arguments: argparse.Namespace) -> int:
    from training.bench import bench_train

    flags = given_flags(arguments)
    chosen = ON_CUDA if flags.get("device") == "cuda" else {}
    config = read_settings(BenchConfig, None, {**chosen, **flags})
    for path in (config.out, config.trace):
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).parent}")

    def told(report: dict[str, Any]) -> None:
        _write(config.out, report)
        _print_figures(report)

    report = bench_train(
        config, say=lambda line: print(line, file=sys.stderr, flush=True), told=told
    )
    if "time" in report:
        _write(config.out, report)
        _print_time(report)
    return 0


def _write(path: str | None, report: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _print_figures(report: dict[str, Any]) -> None:
    settings = report["settings"]
    threads = f", {report['threads']} threads" if settings["device"] == "cpu" else ""
    print(
        f"{report['device']}{threads}, torch {report['torch']}; {settings['method']}, "
        f"{settings['depth']} x {settings['width']}, {report['num_parameters'] / 1e6:.1f}M "
        f"parameters, {settings['precision']}, {report['tokens_per_step']:,} tokens a step\n"
    )
    _print_row(_COLUMNS)
    print("|---" * len(_COLUMNS) + "|")
    for name, key in _ROWS:
        found = report[key]
        least, most = found["least_and_most_seconds"]
        waits, memory = found.get("data_wait_share"), found["peak_memory_mib"]
        _print_row(
            (
                name,
                f"{1e3 * found['seconds_per_step']:,.1f}",
                f"{1e3 * least:,.1f}-{1e3 * most:,.1f}",
                f"{1e3 * found['cpu_seconds_per_step']:,.1f}",
                f"{found['tokens_per_second']:,.0f}",
                f"{found['teraflops']:.3g}",
                "" if waits is None else f"{waits:.2%}",
                "" if memory is None else f"{memory:,.0f}",
            )
        )
    print()
    for name, key in (("time", "seconds"), ("CPU", "cpu_seconds")):
        found = report["loop_over_plain"][key]
        of_rounds = found["of_rounds"]
        print(
            f"loop / plain loop, {name}: {found['of_medians']:.3f} "
            f"({min(of_rounds):.3f}-{max(of_rounds):.3f} in {len(of_rounds)} rounds)"
        )
    reader = report["reader"]
    print(
        f"reading: {1e3 * reader['cpu_seconds_per_step']:.2f} ms of CPU a step, "
        f"{reader['share_of_step_cpu']:.2%} of all"
    )
    by_cpu = report["share_by_cpu_time"]
    print(
        f"products of large matrices: {report['measured_matmul_flops'] / 1e12:.3g} TFLOP/s, of "
        f"which the loop has {report['share_of_measured_matmul']:.1%}"
        + ("" if by_cpu is None else f" ({by_cpu:.1%} by CPU time)")
    )
    if report["mfu"] is not None:
        print(f"published: {report['published_flops'] / 1e12:.4g} TFLOP/s; MFU {report['mfu']:.1%}")
    print(flush=True)


def _print_time(report: dict[str, Any]) -> None:
    time, by_category = report["time"], report["time"]["seconds_per_step"]
    total = sum(by_category.values())
    _print_row(("a step's", "ms", "share"))
    print("|---" * 3 + "|")
    for name, seconds in by_category.items():
        _print_row((name, f"{1e3 * seconds:,.1f}", f"{seconds / total:.1%}"))
    print(f"\n{time['of']} that take longest:")
    for each in time["longest"][:8]:
        print(f"  {1e3 * each['seconds_per_step']:8.2f} ms  {each['name']}")


def _print_row(cells: tuple[str, ...]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)
