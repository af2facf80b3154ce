"""What a report says of clips: the funnel, scores and thresholds, galleries, captions."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspection.accounts import score_columns
from pipeline.inspection.charts import bar, histogram
from pipeline.inspection.funnel import Step, score
from pipeline.inspection.gallery import Exhibit, Shelf
from pipeline.inspection.page import Section, table, text
from pipeline.quantities import duration
from pipeline.rules import Rule

NUM_CAPTIONS, MAX_ROWS, MAX_CAPTION_CHARACTERS = 16, 30, 400
SHOWN_SCALE = 0.875  # four strips of square frames fit beside each other
_KEY = '<i class="key kept"></i>kept<i class="key dropped"></i>dropped'


def funnel_section(accounts: pa.Table, steps: list[Step]) -> Section:
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


def scores_section(accounts: pa.Table, rules: Mapping[str, Rule]) -> Section:
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


def galleries_section(shelves: list[Shelf]) -> Section:
    """Shelves of clips, outcome by outcome."""
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
    """One clip: its frames, its score, its place, its caption."""
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


def captions_section(accounts: pa.Table) -> Section:
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


def _clips(count: int) -> str:
    return f"{count:,} clip" + ("s" if count != 1 else "")


def _short(value: str, length: int) -> str:
    return value if len(value) <= length else value[: length - 1] + "…"
