"""What a report says of shards: groups, the codebook scale by scale, times, unread files."""

from __future__ import annotations

import numpy as np

from pipeline.inspection.charts import bar, sparkline
from pipeline.inspection.page import Section, table, text
from pipeline.inspection.summary import Summary
from pipeline.inspection.timings import StageTimes, stage_times
from pipeline.quantities import duration, large
from pipeline.statistics import code_counts, code_usage, further_token_sets, overall_usage
from pipeline.storage import Storage

MAX_ROWS, MAX_NAME_CHARACTERS = 30, 60


def shards_section(summary: Summary) -> Section:
    """Samples, video and tokens by bucket, split, label and size."""
    statistics = summary.statistics
    if not statistics["samples"]:
        return Section("shards", "", "")
    tables = []
    for name in sorted(statistics["by"], key=lambda each: (each == "label", each)):
        groups = statistics["by"][name]
        largest = max((counts["samples"] for counts in groups.values()), default=1)
        ranked = sorted(groups.items(), key=lambda item: (-item[1]["samples"], item[0]))
        rows = [
            [
                text(value[:MAX_NAME_CHARACTERS]),
                f"{counts['samples']:,}",
                duration(counts["milliseconds"] / 1000),
                large(counts["tokens"]),
                bar((counts["samples"] / largest, "kept")),
            ]
            for value, counts in ranked[:MAX_ROWS]
        ]
        if len(ranked) > MAX_ROWS:
            rows.append([f"and {len(ranked) - MAX_ROWS:,} more", "", "", "", ""])
        tables.append(table([name, "#samples", "#video", "#tokens", ""], rows))
    resolutions = sorted(statistics["resolutions"].items(), key=lambda item: (-item[1], item[0]))
    if len(resolutions) > 1:
        rows = [[text(name), f"{count:,}"] for name, count in resolutions[:MAX_ROWS]]
        tables.append(table(["size in the shards", "#samples"], rows))
    return Section("shards", "What the shards hold", f'<div class="grid">{"".join(tables)}</div>')


def codebook_sections(summary: Summary) -> list[Section]:
    """Of each token set: how each scale of each bucket uses the codes."""
    further = further_token_sets(summary.statistics)
    return [_codebook_section(summary, token_set) for token_set in (None, *further)]


def _codebook_section(summary: Summary, token_set: str | None) -> Section:
    name = f"codebook-{token_set}" if token_set else "codebook"
    overall = overall_usage(summary.statistics, token_set)
    if overall is None:
        return Section(name, "", "")
    rows = []
    counts = [
        row
        for each in code_counts(summary.statistics, token_set).values()
        for row in (each.counts if each.counts is not None else [None] * len(each.tokens))
    ]
    usages = code_usage(summary.statistics, token_set)
    total = sum((row for row in counts if row is not None), start=np.zeros(1, np.int64))
    for usage, histogram_row in [(overall, total), *zip(usages, counts)]:
        is_counted = usage.num_used is not None
        share = (usage.num_used or 0) / usage.codebook_size
        rows.append(
            [
                text(usage.bucket),
                "all" if usage.scale < 0 else str(usage.scale),
                large(usage.num_tokens),
                f"{usage.num_used:,}" if is_counted else "not counted",
                bar((share, "kept")) if is_counted else "",
                "" if usage.entropy_bits is None else f"{usage.entropy_bits:.2f}",
                "" if usage.perplexity is None else f"{usage.perplexity:,.0f}",
                ""
                if histogram_row is None or not usage.num_tokens or usage.entropy_bits is None
                else sparkline(np.sort(histogram_row)[::-1]),
            ]
        )
    header = ["bucket", "#scale", "#tokens", "#used", "", "#bits", "#perplexity", "codes by use"]
    note = (
        f"{overall.codebook_size:,} codes. Bits are the entropy of the codes, at most "
        f"{np.log2(overall.codebook_size):.2f}; perplexity is as many equally likely codes."
    )
    if overall.entropy_bits is None:
        note += " Codebooks this large are not counted code by code."
    title = f"Use of the codebook of {token_set}" if token_set else "Use of the codebook"
    return Section(name, title, table(header, rows), note)


def times_section(storage: Storage) -> Section:
    """Seconds of work by stage, from what the commits say of their runs."""
    stages = stage_times(storage)
    most = max((stage.work_seconds for stage in stages), default=0.0)
    rows = [_time_row(stage, most) for stage in stages]
    header = ["stage", "#units", "#clips", "#elapsed", "#work", "#of it encoding", "#longest unit"]
    header += ["hosts", ""]
    note = "Work is what units took where they ran, added up; they run side by side."
    return Section("times", "Where the time went", table(header, rows) if rows else "", note)


def _time_row(stage: StageTimes, most: float) -> list[str]:
    hosts = sorted(stage.hosts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} ({count:,})" for name, count in hosts[:4])
    encoding = stage.encode_seconds
    rest = max(stage.work_seconds - encoding, 0.0)
    return [
        text(stage.name),
        f"{stage.num_units:,}",
        f"{stage.num_clips:,}",
        duration(stage.span[1] - stage.span[0]) if stage.span else "",
        duration(stage.work_seconds),
        duration(encoding) if encoding else "",
        duration(stage.longest_seconds),
        text(named + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")),
        bar((encoding / (most or 1), "kept"), (rest / (most or 1), "dropped")),
    ]


def failures_section(summary: Summary) -> Section:
    """Files that gave nothing, and why."""
    rows = [
        [text(uri), text(outcome.partition(":")[2])] for uri, outcome in summary.failures[:MAX_ROWS]
    ]
    if len(summary.failures) > MAX_ROWS:
        rows.append([f"and {len(summary.failures) - MAX_ROWS:,} more", ""])
    return Section(
        "errors", "Files that could not be read", table(["file", "why"], rows) if rows else ""
    )
