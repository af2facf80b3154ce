"""The report: one self-contained `report.html` of a dataset, readable without a network.

    write_report("runs/demo/data")

What came in and what became of it, the scores of every clip with the thresholds that cut them, what
the shards hold, captions, the codebook scale by scale, errors, and the settings. The same dataset
gives the same bytes.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.charts import bar, histogram, sparkline
from pipeline.config import Rule, SelectSettings
from pipeline.statistics import code_counts, code_usage, outcome_totals, overall_usage
from pipeline.summary import Summary, score_columns, summarize
from tokenizer.settings import UserError, from_dict

REPORT_FILE = "report.html"
NUM_CAPTIONS = 24
MAX_ROWS = 40


def write_report(directory: str | Path) -> Path:
    """Writes DIR/report.html and returns its path; UserError when DIR is not a dataset."""
    root = Path(directory)
    summary = summarize(root)
    rules = _rules(root / "config.yaml")
    table = pq.read_table(root / summary.accounts_file) if summary.accounts_file else None
    sections = [
        _section("What became of every clip", _funnel(summary)),
        _section("Scores, and where they were cut", _score_charts(table, rules)),
        _section("What the shards hold", _groups(summary)),
        _section("Captions", _captions(table)),
        _section("Use of the codebook", _codebook(summary)),
        _section("Files that could not be read", _failures(summary)),
        _section("Settings", _settings(root / "config.yaml")),
    ]
    text = _page(summary, "".join(sections))
    target = root / REPORT_FILE
    temporary = target.with_suffix(".html.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target


def _page(summary: Summary, body: str) -> str:
    statistics = summary.statistics
    totals = outcome_totals({"outcomes": summary.outcomes})
    overall = overall_usage(statistics)
    seconds = statistics["seconds"]["sum_millionths"] / 1e6
    tiles = [
        ("clips considered", f"{totals['n_in']:,}"),
        ("kept", f"{totals['n_kept']:,}"),
        ("hours kept", f"{seconds / 3600:,.2f}"),
        ("shards", f"{summary.num_shards:,}"),
        ("tokens", f"{statistics['tokens']:,}"),
    ]
    if overall is not None:
        tiles.append(("codes in use", f"{overall.num_used:,} / {overall.codebook_size:,}"))
    state = f"dataset {summary.fingerprint[:16]}" if summary.fingerprint else "not finished"
    return Template(_PAGE).substitute(
        title=_text(Path(summary.root).resolve().name),
        state=_text(state),
        tiles="".join(f"<div class=tile><b>{value}</b>{name}</div>" for name, value in tiles),
        body=body,
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>" if content else ""


def _funnel(summary: Summary) -> str:
    totals = outcome_totals({"outcomes": summary.outcomes})
    if not totals["n_in"]:
        return ""
    order = {"kept": 0, "dropped": 1, "error": 2}
    ranked = sorted(
        summary.outcomes.items(), key=lambda item: (order[item[0].partition(":")[0]], -item[1])
    )
    rows = [
        [
            _text(name),
            f"{count:,}",
            f"{count / totals['n_in']:.1%}",
            bar(count / totals["n_in"], name.partition(":")[0]),
        ]
        for name, count in ranked
    ]
    caption = (
        f"{totals['n_in']:,} considered = {totals['n_kept']:,} kept + {totals['n_dropped']:,} "
        f"dropped + {totals['n_error']:,} errors"
    )
    return f"<p>{caption}</p>" + _table(["outcome", "clips", "share", ""], rows)


def _score_charts(table: pa.Table | None, rules: Mapping[str, Rule]) -> str:
    """A histogram per score over every clip that has it, kept ones above the rest."""
    if table is None:
        return ""
    kept = table["outcome"].to_numpy(zero_copy_only=False) == "kept"
    charts = []
    for name in score_columns(table):
        values = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        known = np.isfinite(values)
        if not known.any():
            continue
        lines = [
            (rule.bound, f"{rule_name}: dropped if {rule.comparison} {rule.bound:g}")
            for rule_name, rule in rules.items()
            if rule.score == name
        ]
        missing = int((~known).sum())
        note = f"{int(known.sum()):,} clips" + (f", {missing:,} without it" if missing else "")
        chart = histogram(values[known & kept], values[known & ~kept], lines)
        charts.append(
            f"<figure><figcaption><b>{_text(name)}</b> {note}</figcaption>{chart}</figure>"
        )
    return f"<div class=grid>{''.join(charts)}</div>" if charts else ""


def _groups(summary: Summary) -> str:
    tables = []
    for name, groups in summary.statistics["by"].items():
        largest = max((counts["samples"] for counts in groups.values()), default=1)
        ranked = sorted(groups.items(), key=lambda item: (-item[1]["samples"], item[0]))
        rows = [
            [
                _text(value),
                f"{counts['samples']:,}",
                f"{counts['milliseconds'] / 1000:,.0f}",
                f"{counts['tokens']:,}",
                bar(counts["samples"] / largest, "kept"),
            ]
            for value, counts in ranked[:MAX_ROWS]
        ]
        if len(ranked) > MAX_ROWS:
            rows.append([f"and {len(ranked) - MAX_ROWS:,} more", "", "", "", ""])
        tables.append(_table([name, "samples", "seconds", "tokens", ""], rows))
    return f"<div class=grid>{''.join(tables)}</div>" if summary.statistics["samples"] else ""


def _captions(table: pa.Table | None) -> str:
    """Captions of kept clips at equal distances through the dataset."""
    if table is None:
        return ""
    columns = ("outcome", "caption", "caption_by", "label", "uri")
    rows = [
        row
        for row in table.select(columns).to_pylist()
        if row["outcome"] == "kept" and row["caption"]
    ]
    if not rows:
        return ""
    distinct = len({row["caption"] for row in rows})
    step = max(1, len(rows) // NUM_CAPTIONS)
    shown = [
        [_text(row[name] or "") for name in ("caption", "caption_by", "label", "uri")]
        for row in rows[::step][:NUM_CAPTIONS]
    ]
    note = f"<p>{len(rows):,} captions, {distinct:,} of them different</p>"
    return note + _table(["caption", "by", "label", "file"], shown)


def _codebook(summary: Summary) -> str:
    overall = overall_usage(summary.statistics)
    if overall is None:
        return ""
    histograms = [
        row
        for each in code_counts(summary.statistics).values()
        if each.counts is not None
        for row in each.counts
    ]
    if not histograms:
        return ""
    usages = [(overall, np.sum(histograms, axis=0))]
    usages += list(zip(code_usage(summary.statistics), histograms))
    rows = [
        [
            _text(usage.bucket),
            "all" if usage.scale < 0 else str(usage.scale),
            f"{usage.num_tokens:,}",
            f"{usage.num_used:,}",
            f"{usage.num_dead:,}",
            f"{usage.entropy_bits:.2f}",
            f"{usage.perplexity:,.0f}",
            sparkline(np.sort(counts)[::-1]),
        ]
        for usage, counts in usages
    ]
    header = ["bucket", "scale", "tokens", "used", "dead", "bits", "perplexity", "codes by use"]
    return f"<p>{overall.codebook_size:,} codes</p>" + _table(header, rows)


def _failures(summary: Summary) -> str:
    rows = [[_text(uri), _text(outcome)] for uri, outcome in summary.failures[:MAX_ROWS]]
    if len(summary.failures) > MAX_ROWS:
        rows.append([f"and {len(summary.failures) - MAX_ROWS:,} more", ""])
    return _table(["file", "why"], rows) if rows else ""


def _settings(path: Path) -> str:
    if not path.exists():
        return ""
    return f"<pre>{_text(path.read_text(encoding='utf-8'))}</pre>"


def _rules(path: Path) -> dict[str, Rule]:
    """The thresholds of the build; none when its config is missing or unreadable."""
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return from_dict(SelectSettings, values.get("select", {}), str(path)).rules
    except (OSError, yaml.YAMLError, AttributeError, UserError):
        return {}


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(str(value))


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --ink: #1d2430; --soft: #667084; --line: #e3e6ec; --page: #f7f8fa; --card: #fff;
  --kept: #2a7f78; --dropped: #d9a441; --error: #c4463d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a1b3; --line: #2b313d; --page: #14171d; --card: #1b1f27;
    --kept: #4fb3a9; --dropped: #e0b560; --error: #e0716a; } }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 0 0 .8rem; font-size: 1.05rem; }
p { margin: 0 0 .8rem; color: var(--soft); }
section { margin-top: 1.2rem; padding: 1.2rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.tile { flex: 1 1 8rem; padding: .8rem 1rem; background: var(--card); color: var(--soft);
  border: 1px solid var(--line); border-radius: 10px; font-size: .85rem; }
.tile b { display: block; color: var(--ink); font-size: 1.25rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.4rem; }
figure { margin: 0; }
figcaption { color: var(--soft); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; text-align: left; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: middle; }
tbody tr:last-child td { border-bottom: 0; }
pre { margin: 0; font-size: .85rem; white-space: pre-wrap; }
svg { display: block; max-width: 100%; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; }
.kept { fill: var(--kept); } .dropped { fill: var(--dropped); } .error { fill: var(--error); }
.track { fill: var(--line); } .axis { stroke: var(--line); }
.bound { stroke: var(--error); stroke-dasharray: 3 2; } .area { fill: var(--kept); opacity: .8; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$state</p>
<div class="tiles">$tiles</div>
$body
</body>
</html>
"""
