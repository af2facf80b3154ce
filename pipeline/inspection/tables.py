"""Tables on a terminal: how `tessera stats` shows what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.distribution import describe
from pipeline.inspection.by_source import SourceRow
from pipeline.inspection.summary import Summary, distributions
from pipeline.inspection.terminal import print_line, print_table
from pipeline.quantities import duration, size
from pipeline.statistics import code_usage, further_token_sets, outcome_totals, overall_usage

MAX_GROUP_ROWS, MAX_SOURCE_ROWS = 12, 1000
MAX_FAILURE_ROWS = 10


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
    for token_set in (None, *further_token_sets(summary.statistics)):
        _print_codebook(summary, token_set)
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


def _print_codebook(summary: Summary, token_set: str | None) -> None:
    overall = overall_usage(summary.statistics, token_set)
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
        for usage in (*code_usage(summary.statistics, token_set), overall)
    ]
    title = f"{token_set or 'codes'} of {overall.codebook_size:,}"
    print_table([title, "#scale", "#tokens", "#used", "#dead", "#bits", "#perplexity"], rows)


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    return (0, float(value), "") if value.isdigit() else (1, 0.0, value)
