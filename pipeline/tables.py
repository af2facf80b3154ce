"""Tables on a terminal: how `tessera stats` and `tessera inspect` show what they found.

Names and captions come from other people's files: they are shown as text, never as markup, and
control characters are replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.distribution import describe
from pipeline.inspection import InspectedShard, Sample
from pipeline.shards.format import SHARDS_FILE, Bucket, ShardError, parse_declaration
from pipeline.statistics import code_usage, outcome_totals, overall_usage
from pipeline.summary import Summary, distributions

MAX_GROUP_ROWS = 12
MAX_FAILURE_ROWS = 10
MAX_CODES_SHOWN = 12
PIPE_WIDTH = 1000


def print_summary(summary: Summary) -> None:
    """Everything `tessera stats` shows."""
    console = _console()
    statistics = summary.statistics
    state = "finished" if summary.is_finished else "not finished: what is committed so far"
    console.print(_line(f"{summary.root}: {state}"))
    if summary.fingerprint:
        console.print(_line(f"dataset {summary.fingerprint[:16]}"))
    console.print(
        _line(
            f"{statistics['samples']:,} samples in {summary.num_shards:,} shards "
            f"({_size(summary.shard_bytes)}), {statistics['frames']:,} frames, "
            f"{statistics['tokens']:,} tokens"
        )
    )
    _print_outcomes(console, summary)
    for name in ("bucket", "split", "label"):
        _print_group(console, summary, name, MAX_GROUP_ROWS)
    _print_numbers(console, "of clips considered", summary.considered)
    _print_numbers(console, "of kept samples", distributions(statistics))
    _print_codebook(console, summary)
    if statistics["missing_scores"]:
        listed = ", ".join(f"{name} {n:,}" for name, n in statistics["missing_scores"].items())
        console.print(_line(f"samples without a score: {listed}"))


def print_group(summary: Summary, name: str) -> None:
    """One grouping, whole."""
    _print_group(_console(), summary, name, None)


def print_shard(shard: InspectedShard, limit: int) -> None:
    """The samples of a shard, the first `limit` of them (0: all)."""
    console = _console()
    extensions = sorted({each.extension for row in shard.members.values() for each in row})
    console.print(
        _line(
            f"{shard.path}: {len(shard.keys):,} samples, {_size(shard.size_bytes)}, "
            f"members {', '.join(extensions)}"
        )
    )
    shown = shard.keys if limit <= 0 else shard.keys[:limit]
    rows = []
    for key in shown:
        sample = shard.read(key)
        arrays = ", ".join(
            f"{name} {array.dtype}{list(array.shape)}" for name, array in sample.arrays.items()
        )
        size = sum(member.size_bytes for member in shard.members[key])
        values = [sample.metadata.get(name) for name in ("bucket", "label", "caption")]
        rows.append([key, f"{size:,}", arrays, *("" if v is None else str(v) for v in values)])
    _print_table(console, ["key", "bytes", "arrays", "bucket", "label", "caption"], rows, {1})
    if len(shown) < len(shard.keys):
        rest = len(shard.keys) - len(shown)
        console.print(_line(f"and {rest:,} more (--limit 0 for all)"))


def print_sample(shard: InspectedShard, key: str) -> None:
    """One sample: its JSON, its arrays, its codes scale by scale."""
    console = _console()
    sample = shard.read(key)
    console.print(_line(f"{shard.path}: {key}"))
    text = json.dumps(sample.metadata, indent=2, sort_keys=True, ensure_ascii=False)
    for line in text.splitlines():
        console.print(_line(line))
    rows = [
        [
            name,
            str(array.dtype),
            "x".join(map(str, array.shape)),
            f"{array.nbytes:,}",
            *([f"{array.min()}", f"{array.max()}"] if array.size else ["", ""]),
        ]
        for name, array in sample.arrays.items()
    ]
    _print_table(console, ["array", "dtype", "shape", "bytes", "min", "max"], rows, {3, 4, 5})
    _print_scales(console, shard.path, sample)


def _print_outcomes(console: Console, summary: Summary) -> None:
    totals = outcome_totals({"outcomes": summary.outcomes})
    order = {"kept": 0, "dropped": 1, "error": 2}
    ranked = sorted(
        summary.outcomes.items(), key=lambda item: (order[item[0].partition(":")[0]], -item[1])
    )
    rows = [[name, f"{n:,}", f"{n / totals['n_in']:.1%}"] for name, n in ranked]
    rows.append(["all considered", f"{totals['n_in']:,}", ""])
    _print_table(console, ["outcome", "clips", "share"], rows, {1, 2})
    if summary.failures:
        shown = summary.failures[:MAX_FAILURE_ROWS]
        _print_table(console, ["could not be read", "why"], [list(row) for row in shown], set())
        if len(summary.failures) > len(shown):
            console.print(_line(f"and {len(summary.failures) - len(shown):,} more (--json)"))


def _print_group(console: Console, summary: Summary, name: str, limit: int | None) -> None:
    groups = summary.statistics["by"][name]
    rows = [
        [
            value,
            f"{counts['samples']:,}",
            f"{counts['milliseconds'] / 1000:,.1f}",
            f"{counts['frames']:,}",
            f"{counts['tokens']:,}",
        ]
        for value, counts in sorted(groups.items(), key=lambda item: _natural(item[0]))
    ]
    shown = rows if limit is None else rows[:limit]
    header = [name, "samples", "seconds", "frames", "tokens"]
    _print_table(console, header, shown, {1, 2, 3, 4})
    if len(shown) < len(rows):
        console.print(_line(f"and {len(rows) - len(shown):,} more (--by {name} for all)"))


def _print_numbers(console: Console, title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    cells = []
    for name, distribution in rows.items():
        facts = describe(distribution)
        if not facts["count"]:
            cells.append([name, "0", *[""] * 6])
            continue
        numbers = [facts[each] for each in ("min", "p5", "p50", "p95", "max", "mean")]
        cells.append([name, f"{facts['count']:,}", *(f"{number:.4g}" for number in numbers)])
    header = [title, "count", "min", "5%", "median", "95%", "max", "mean"]
    _print_table(console, header, cells, set(range(1, 8)))


def _print_codebook(console: Console, summary: Summary) -> None:
    overall = overall_usage(summary.statistics)
    if overall is None:
        return
    rows = [
        [
            usage.bucket,
            "all" if usage.scale < 0 else str(usage.scale),
            f"{usage.num_tokens:,}",
            *("-" if n is None else f"{n:,}" for n in (usage.num_used, usage.num_dead)),
            *("-" if x is None else f"{x:,.2f}" for x in (usage.entropy_bits, usage.perplexity)),
        ]
        for usage in (*code_usage(summary.statistics), overall)
    ]
    title = f"codes of {overall.codebook_size:,}"
    header = [title, "scale", "tokens", "used", "dead", "bits", "perplexity"]
    _print_table(console, header, rows, set(range(1, 7)))


def _print_scales(console: Console, path: Path, sample: Sample) -> None:
    bucket = _bucket_of(path, str(sample.metadata.get("bucket")))
    codes = sample.arrays.get("codes.npy")
    if codes is None or bucket is None or bucket.schedule is None or codes.ndim != 1:
        return
    if len(codes) != bucket.schedule.num_tokens:
        raise ShardError(
            f"{path}: {sample.key} has {len(codes)} codes; the schedule of {bucket.name} has "
            f"{bucket.schedule.num_tokens}"
        )
    rows = []
    for index, (scale, part) in enumerate(
        zip(bucket.schedule.scales, bucket.schedule.split(codes))
    ):
        flat = part.reshape(-1)
        first = " ".join(str(code) for code in flat[:MAX_CODES_SHOWN])
        rows.append(
            [
                str(index),
                f"{scale.t0} to {scale.t1}",
                "x".join(map(str, scale.shape)),
                str(len(np.unique(flat))),
                first + (" ..." if len(flat) > MAX_CODES_SHOWN else ""),
            ]
        )
    _print_table(
        console, ["scale", "latent frames", "t x h x w", "distinct", "codes"], rows, {0, 3}
    )


def _bucket_of(path: Path, name: str) -> Bucket | None:
    """The bucket as declared by the dataset around this shard; None for a shard on its own."""
    declared = path.resolve().parent.parent / SHARDS_FILE
    if not declared.is_file():
        return None
    text = declared.read_text(encoding="utf-8")
    _, _, buckets, _ = parse_declaration(text, str(declared))
    return next((bucket for bucket in buckets if bucket.name == name), None)


def _print_table(
    console: Console, header: list[str], rows: Iterable[list[str]], numeric: set[int]
) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(_line(name), justify="right" if index in numeric else "left")
    for row in rows:
        table.add_row(*(_line(cell) for cell in row))
    if table.row_count:
        console.print()
        console.print(table)


def _console() -> Console:
    """As wide as the terminal; in a pipe, as wide as the table, so that lines can be searched."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(soft_wrap=True, highlight=False, width=width)


def _line(text: str) -> Text:
    """Text without control characters, so that a caption cannot steer the terminal."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}" if unit != "bytes" else f"{size_bytes:.0f} bytes"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    return (0, float(value), "") if value.isdigit() else (1, 0.0, value)
