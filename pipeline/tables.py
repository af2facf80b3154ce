"""Tables on a terminal: how `tessera stats` and `tessera inspect` show what they found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.by_source import SourceRow
from pipeline.distribution import describe
from pipeline.inspection import InspectedShard, Sample
from pipeline.quantities import duration, size
from pipeline.shards.format import SHARDS_FILE, Bucket, ShardError, parse_declaration
from pipeline.statistics import code_usage, outcome_totals, overall_usage
from pipeline.summary import Summary, distributions
from pipeline.terminal import print_line, print_table

MAX_GROUP_ROWS, MAX_SOURCE_ROWS = 12, 1000
MAX_FAILURE_ROWS = 10
MAX_CODES_SHOWN = 12


def print_summary(summary: Summary) -> None:
    """Everything `tessera stats` shows."""
    statistics = summary.statistics
    state = "finished" if summary.is_finished else "not finished: what is committed so far"
    print_line(f"{summary.root}: {state}")
    if summary.fingerprint:
        print_line(f"dataset {summary.fingerprint[:16]}")
    print_line(
        f"{statistics['samples']:,} samples in {summary.num_shards:,} shards "
        f"({size(summary.shard_bytes)}), {statistics['frames']:,} frames, "
        f"{statistics['tokens']:,} tokens"
    )
    if summary.num_removed:
        count = f"{summary.num_removed:,} samples"
        print_line(f"{count} are removed; `tessera gc --rewrite` erases their bytes")
    _print_outcomes(summary)
    for name in ("bucket", "split", "label"):
        _print_group(summary, name, MAX_GROUP_ROWS)
    _print_numbers("of clips considered", summary.considered)
    _print_numbers("of kept samples", distributions(statistics))
    _print_codebook(summary)
    shapes = sorted(statistics["resolutions"].items(), key=lambda item: (-item[1], item[0]))
    print_table(["width x height", "#samples"], [[name, f"{n:,}"] for name, n in shapes])
    authors = sorted(statistics["captioned_by"].items(), key=lambda item: (-item[1], item[0]))
    print_table(["captioned by", "#samples"], [[name, f"{n:,}"] for name, n in authors])
    if statistics["missing_scores"]:
        listed = ", ".join(f"{name} {n:,}" for name, n in statistics["missing_scores"].items())
        print_line(f"samples without a score: {listed}")


def print_group(summary: Summary, name: str) -> None:
    """One grouping, whole."""
    _print_group(summary, name, None)


def print_sources(sources: list[SourceRow]) -> None:
    """What became of the clips of each file."""
    rows = [
        [
            each.uri,
            each.source_id[:16],
            *(f"{n:,}" for n in (each.clips, each.kept, each.dropped, each.errors)),
            duration(each.seconds_kept),
        ]
        for each in sources[:MAX_SOURCE_ROWS]
    ]
    print_table(["file", "source", "#clips", "#kept", "#dropped", "#errors", "#kept video"], rows)
    if len(sources) > len(rows):
        print_line(f"and {len(sources) - len(rows):,} more (--json, or --sql)")


def print_shard(shard: InspectedShard, limit: int) -> None:
    """The samples of a shard, the first `limit` of them (0: all)."""
    extensions = sorted({each.extension for row in shard.members.values() for each in row})
    print_line(
        f"{shard.path}: {len(shard.keys):,} samples, {size(shard.size_bytes)}, "
        f"members {', '.join(extensions)}"
    )
    shown = shard.keys if limit <= 0 else shard.keys[:limit]
    rows = []
    for key in shown:
        sample = shard.read(key)
        arrays = ", ".join(
            f"{name} {array.dtype}{list(array.shape)}" for name, array in sample.arrays.items()
        )
        num_bytes = sum(member.size_bytes for member in shard.members[key])
        values = [sample.metadata.get(name) for name in ("bucket", "label", "caption")]
        rows.append([key, f"{num_bytes:,}", arrays, *("" if v is None else str(v) for v in values)])
    print_table(["key", "#bytes", "arrays", "bucket", "label", "caption"], rows)
    if len(shown) < len(shard.keys):
        rest = len(shard.keys) - len(shown)
        print_line(f"and {rest:,} more (--limit 0 for all)")


def print_sample(shard: InspectedShard, key: str) -> None:
    """One sample: its JSON, its arrays, its codes scale by scale."""
    sample = shard.read(key)
    print_line(f"{shard.path}: {key}")
    text = json.dumps(sample.metadata, indent=2, sort_keys=True, ensure_ascii=False)
    for line in text.splitlines():
        print_line(line)
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
    print_table(["array", "dtype", "shape", "#bytes", "#min", "#max"], rows)
    _print_scales(shard.path, sample)


def _print_outcomes(summary: Summary) -> None:
    totals = outcome_totals({"outcomes": summary.outcomes})
    order = {"kept": 0, "dropped": 1, "error": 2}
    ranked = sorted(
        summary.outcomes.items(), key=lambda item: (order[item[0].partition(":")[0]], -item[1])
    )
    rows = [[name, f"{n:,}", f"{n / totals['n_in']:.1%}"] for name, n in ranked]
    rows.append(["all considered", f"{totals['n_in']:,}", ""])
    print_table(["outcome", "#clips", "#share"], rows)
    if summary.failures:
        shown = summary.failures[:MAX_FAILURE_ROWS]
        print_table(["could not be read", "why"], [list(row) for row in shown])
        if len(summary.failures) > len(shown):
            print_line(f"and {len(summary.failures) - len(shown):,} more (--json)")


def _print_group(summary: Summary, name: str, limit: int | None) -> None:
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
    print_table([name, "#samples", "#seconds", "#frames", "#tokens"], shown)
    if len(shown) < len(rows):
        print_line(f"and {len(rows) - len(shown):,} more (--by {name} for all)")


def _print_numbers(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    cells = []
    for name, distribution in rows.items():
        facts = describe(distribution)
        if not facts["count"]:
            cells.append([name, "0", *[""] * 6])
            continue
        numbers = [facts[each] for each in ("min", "p5", "p50", "p95", "max", "mean")]
        cells.append([name, f"{facts['count']:,}", *(f"{number:.4g}" for number in numbers)])
    header = [title, "#count", "#min", "#5%", "#median", "#95%", "#max", "#mean"]
    print_table(header, cells)


def _print_codebook(summary: Summary) -> None:
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
    print_table([title, "#scale", "#tokens", "#used", "#dead", "#bits", "#perplexity"], rows)


def _print_scales(path: Path, sample: Sample) -> None:
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
    print_table(["#scale", "latent frames", "t x h x w", "#distinct", "codes"], rows)


def _bucket_of(path: Path, name: str) -> Bucket | None:
    """The bucket as declared by the dataset around this shard; None for a shard on its own."""
    declared = path.resolve().parent.parent / SHARDS_FILE
    if not declared.is_file():
        return None
    text = declared.read_text(encoding="utf-8")
    _, _, buckets, _ = parse_declaration(text, str(declared))
    return next((bucket for bucket in buckets if bucket.name == name), None)


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    return (0, float(value), "") if value.isdigit() else (1, 0.0, value)
