"""The report: one self-contained `report.html` of a dataset, readable without a network.

    write_report("runs/demo/data")
    tessera report runs/demo/data

What came in and what each rule took away, scores with the thresholds drawn in, pictures of kept and
dropped clips, what the shards hold, captions, the codebook scale by scale, where the time went,
errors, and the settings. The same folder (and the same source files) gives the same bytes.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.accounts import read_accounts, score_columns
from pipeline.charts import bar, histogram, sparkline
from pipeline.config import Rule, SelectSettings
from pipeline.funnel import COLUMNS, FACTS, Step, funnel, score
from pipeline.gallery import NEEDED, OPTIONAL, Exhibit, Shelf, make_gallery
from pipeline.page import Section, page, table, text, tiles
from pipeline.quantities import duration, large, size
from pipeline.statistics import code_counts, code_usage, outcome_totals, overall_usage
from pipeline.storage import Storage, open_storage
from pipeline.summary import Summary, summarize
from pipeline.timings import StageTimes, stage_times
from tokenizer.settings import UserError, from_dict

REPORT_FILE, CONFIG_FILE = "report.html", "config.yaml"
NUM_CAPTIONS, MAX_ROWS, MAX_CAPTION_CHARACTERS = 16, 30, 400
GALLERY_SECONDS = 30.0
SHOWN_SCALE = 0.875  # four strips of square frames fit beside each other
_KEY = '<i class="key kept"></i>kept<i class="key dropped"></i>dropped'


def write_report(directory: str | Path, *, gallery_seconds: float = GALLERY_SECONDS) -> Path:
    """Writes DIR/report.html and returns its path; UserError when DIR is not a dataset.

    Pictures for the galleries are decoded for at most `gallery_seconds`; 0: none.
    """
    root = Path(directory)
    summary = summarize(root)
    rules = _rules(root / CONFIG_FILE)
    storage = open_storage(root)
    shown = (*COLUMNS, *FACTS, *NEEDED, *OPTIONAL, "caption_by", *summary.considered)
    accounts = read_accounts(storage, dict.fromkeys(shown)) if summary.accounts_file else None
    sections = [_shards(summary), _codebook(summary), _times(storage), _failures(summary)]
    if accounts is not None:
        steps = funnel(accounts, rules)
        shelves = []
        if gallery_seconds > 0:
            shelves = make_gallery(root, accounts, rules, seconds=gallery_seconds)
        sections[:1] = [
            _funnel(accounts, steps),
            _scores(accounts, rules),
            _galleries(shelves),
            sections[0],
            _captions(accounts),
        ]
    sections.append(_settings(root / CONFIG_FILE))
    target = root / REPORT_FILE
    temporary = target.with_suffix(".html.tmp")
    temporary.write_text(page(_title(root), _lead(summary), sections), encoding="utf-8")
    os.replace(temporary, target)
    return target


def _title(root: Path) -> str:
    """The last two names of the place that was built into; else of the folder."""
    try:
        place = str(yaml.safe_load((root / CONFIG_FILE).read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        place = str(root.resolve())
    return "/".join(place.rstrip("/").split("/")[-2:])


def _lead(summary: Summary) -> str:
    statistics = summary.statistics
    totals = outcome_totals({"outcomes": summary.outcomes})
    overall = overall_usage(statistics)
    seconds = statistics["seconds"]["sum_millionths"] / 1e6
    share = totals["n_kept"] / max(totals["n_in"], 1)
    facts = [
        (f"{totals['n_in']:,}", "clips considered", f"{totals['n_error']:,} unreadable"),
        (f"{totals['n_kept']:,}", "clips kept", f"{share:.1%}"),
        (duration(seconds), "of video", f"{statistics['frames']:,} frames"),
        (f"{summary.num_shards:,}", "shards", size(summary.shard_bytes)),
    ]
    if statistics["tokens"]:
        per_sample = statistics["tokens"] / max(statistics["samples"], 1)
        facts.append((large(statistics["tokens"]), "tokens", f"{per_sample:,.0f} a sample"))
    if overall is not None and overall.num_used is not None:
        used = overall.num_used / overall.codebook_size
        facts.append((f"{used:.0%}", "of codes in use", f"of {overall.codebook_size:,}"))
    state = "A finished dataset" if summary.is_finished else "A dataset in the making"
    name = (
        f', <code title="fingerprint">{text(summary.fingerprint[:16])}</code>'
        if (summary.fingerprint)
        else ""
    )
    removed = ""
    if summary.num_removed:
        removed = f" {summary.num_removed:,} samples were removed and await <code>gc</code>."
    return f'<p class="lead">{state}{name}.{removed}</p>' + tiles(facts)


def _funnel(accounts: pa.Table, steps: list[Step]) -> Section:
    """What each rule took, with what was left after it."""
    total = max(len(accounts), 1)
    everything = score(accounts, "duration_seconds")
    hours = float(np.nansum(everything))
    rows = [
        [
            "<b>all clips considered</b>",
            "",
            f"{total:,}<small>{duration(hours)}</small>",
            "",
            "",
            bar((1.0, "kept")),
        ]
    ]
    for step in steps:
        kind = step.outcome.partition(":")[0]
        name = step.outcome.partition(":")[2]
        rule = (
            f"{step.rule.score} {step.rule.comparison} {step.rule.bound:g}" if step.rule else kind
        )
        rows.append(
            [
                f"<b>{text(name)}</b><small>{text(rule)}</small>",
                f"−{step.clips:,}<small>{step.clips / total:.1%}</small>",
                f"{step.clips_left:,}<small>{duration(step.seconds_left)}</small>",
                "" if step.alone is None else f"{step.alone:,}",
                "" if step.only is None else f"{step.only:,}",
                bar((step.clips_left / total, "kept"), (step.clips / total, kind)),
            ]
        )
    header = ["rule", "#dropped", "#left", "#holds for", "#only this rule", ""]
    shown = table(header, rows, "wide funnel").replace(
        '<td><div class="bar">', '<td class="picture"><div class="bar">'
    )
    note = (
        "In the order in which clips leave. “Holds for” counts the scored clips that a rule would "
        "drop by itself; “only this rule” those that would be kept without it."
    )
    return Section("funnel", "What became of every clip", shown, note)


def _scores(accounts: pa.Table, rules: Mapping[str, Rule]) -> Section:
    """A histogram per score over every clip that has it, kept ones above the rest."""
    kept = pc.equal(pc.cast(accounts["outcome"], pa.string()), "kept").to_numpy()
    named = [rule.score for rule in rules.values()]
    names = dict.fromkeys([*score_columns(accounts), *named, "duration_seconds"])
    charts = []
    for name in names:
        values = score(accounts, name)
        known = np.isfinite(values) & (values != 0 if name == "duration_seconds" else True)
        if not known.any():
            continue
        bounds = [
            (
                rule.bound,
                rule.comparison.startswith("<"),
                f"{label}: {rule.comparison} {rule.bound:g}",
            )
            for label, rule in rules.items()
            if rule.score == name
        ]
        missing = int((~known).sum())
        note = _clips(int(known.sum())) + (f", {missing:,} without it" if missing else "")
        unit = " s" if name.endswith("_seconds") else ""
        chart = histogram(values[known & kept], values[known & ~kept], bounds, unit)
        title = name.removesuffix("_seconds").replace("_", " ")
        charts.append(
            f"<figure><figcaption><b>{text(title)}</b> <small>{note}</small></figcaption>"
            f"{chart}</figure>"
        )
    content = f'<p class="soft">{_KEY}</p><div class="grid">{"".join(charts)}</div>'
    note = "Every clip that has the score. The shaded side of a dashed line is what a rule drops."
    return Section("scores", "Scores, and where they were cut", content if charts else "", note)


def _galleries(shelves: list[Shelf]) -> Section:
    parts = []
    for shelf in shelves:
        name = shelf.outcome.partition(":")[2] or shelf.outcome
        rule = (
            f"{shelf.rule.score} {shelf.rule.comparison} {shelf.rule.bound:g}, "
            if shelf.rule
            else ""
        )
        shown = "".join(_exhibit(each, shelf) for each in shelf.exhibits)
        parts.append(
            f"<h3>{text(name)}<small>{text(rule)}{_clips(shelf.num_clips)}</small></h3>"
            f'<div class="shelf">{shown}</div>'
        )
    every = [each for shelf in shelves for each in shelf.exhibits]
    missing = sorted({each.reason for each in every if not each.pictures})
    note = "First, middle and last frame, decoded from the source files; clips chosen by their ids."
    if missing:
        count = sum(not each.pictures for each in every)
        note += f" {count} of {len(every)} have no picture ({', '.join(missing)})."
    return Section("galleries", "A look at the clips", "".join(parts), note)


def _exhibit(exhibit: Exhibit, shelf: Shelf) -> str:
    said = exhibit.caption or exhibit.uri
    width, height = exhibit.size
    pictures = "".join(
        f'<img src="data:image/jpeg;base64,{b64encode(each).decode("ascii")}" width="{width}" '
        f'height="{height}" alt="{text(_short(said, 120)) if place == 0 else ""}">'
        for place, each in enumerate(exhibit.pictures)
    )
    if not pictures:
        pictures = f'<div class="missing">no picture: {text(exhibit.reason)}</div>'
    value = ""
    if shelf.rule and exhibit.score is not None:
        value = f"<b>{text(shelf.rule.score)} {exhibit.score:.4g}</b>"
    where = f"{exhibit.uri} at {exhibit.start_seconds:.2f} s"
    below = f"<br>{text(_short(exhibit.caption, 120))}" if exhibit.caption else ""
    shown_width = round(width * len(exhibit.pictures) * SHOWN_SCALE) or 250
    return (
        f'<figure style="width:{shown_width}px">'
        f'<div class="strip" style="width:{shown_width}px">{pictures}</div>'
        f"<figcaption>{value}{text(where)}{below}</figcaption></figure>"
    )


def _shards(summary: Summary) -> Section:
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
                text(_short(value, 60)),
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


def _captions(accounts: pa.Table) -> Section:
    """How long captions are, who wrote them, and some at equal distances through the dataset."""
    wanted = [
        name for name in ("caption", "caption_by", "label", "uri") if name in accounts.schema.names
    ]
    if "caption" not in wanted:
        return Section("captions", "", "")
    kept = pc.equal(pc.cast(accounts["outcome"], pa.string()), "kept")
    rows = accounts.select(wanted).filter(pc.and_(kept, pc.is_valid(accounts["caption"])))
    if not len(rows):
        return Section("captions", "", "")
    lengths = pc.utf8_length(rows["caption"]).to_numpy().astype(np.float64)
    distinct = pc.count_distinct(rows["caption"]).as_py()
    places = np.unique(np.linspace(0, len(rows) - 1, NUM_CAPTIONS).astype(np.int64))
    names = ["caption", *(name for name in wanted[1:])]
    shown = [
        [text(_short(row[name] or "", MAX_CAPTION_CHARACTERS)) for name in names]
        for row in rows.take(places).to_pylist()
    ]
    written = ""
    if "caption_by" in wanted:
        counts = pc.value_counts(rows["caption_by"]).to_pylist()
        ranked = sorted(counts, key=lambda row: (-row["counts"], str(row["values"])))
        largest = ranked[0]["counts"]
        written = table(
            ["written by", "#captions", ""],
            [
                [text(row["values"]), f"{row['counts']:,}", bar((row["counts"] / largest, "kept"))]
                for row in ranked[:MAX_ROWS]
            ],
        )
    chart = histogram(lengths, np.zeros(0))
    content = (
        f'<div class="grid"><figure><figcaption><b>characters</b></figcaption>{chart}</figure>'
        f"<div>{written}</div></div>"
        + table([{"caption_by": "by", "uri": "file"}.get(n, n) for n in names], shown, "captions")
    )
    note = f"{len(rows):,} captions, {distinct:,} of them distinct."
    return Section("captions", "Captions", content, note)


def _codebook(summary: Summary) -> Section:
    overall = overall_usage(summary.statistics)
    if overall is None:
        return Section("codebook", "", "")
    rows = []
    counts = [
        row
        for each in code_counts(summary.statistics).values()
        for row in (each.counts if each.counts is not None else [None] * len(each.tokens))
    ]
    usages = code_usage(summary.statistics)
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
    return Section("codebook", "Use of the codebook", table(header, rows), note)


def _times(storage: Storage) -> Section:
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


def _failures(summary: Summary) -> Section:
    rows = [
        [text(uri), text(outcome.partition(":")[2])] for uri, outcome in summary.failures[:MAX_ROWS]
    ]
    if len(summary.failures) > MAX_ROWS:
        rows.append([f"and {len(summary.failures) - MAX_ROWS:,} more", ""])
    return Section(
        "errors", "Files that could not be read", table(["file", "why"], rows) if rows else ""
    )


def _settings(path: Path) -> Section:
    content = f"<pre>{text(path.read_text(encoding='utf-8'))}</pre>" if path.exists() else ""
    return Section("settings", "Settings", content)


def _rules(path: Path) -> dict[str, Rule]:
    """The thresholds of the build; none when its config is missing or unreadable."""
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return from_dict(SelectSettings, values.get("select", {}), str(path)).rules
    except (OSError, ValueError, yaml.YAMLError, AttributeError, UserError):
        return {}


def _clips(count: int) -> str:
    return f"{count:,} clip" + ("s" if count != 1 else "")


def _short(value: str, length: int) -> str:
    return value if len(value) <= length else value[: length - 1] + "…"
