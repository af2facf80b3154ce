"""The report: one self-contained `report.html` of a dataset, readable without a network.

    write_report("runs/demo/data")
    tessera report runs/demo/data

What came in and what each rule took away, scores with the thresholds drawn in, pictures of kept and
dropped clips, what the shards hold, captions, the codebook scale by scale, where the time went,
errors, and the settings. The same folder (and the same source files) gives the same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import SelectSettings
from pipeline.inspection.accounts import read_accounts
from pipeline.inspection.clip_sections import (
    captions_section,
    funnel_section,
    galleries_section,
    scores_section,
)
from pipeline.inspection.funnel import COLUMNS, FACTS, funnel
from pipeline.inspection.gallery import NEEDED, OPTIONAL, make_gallery
from pipeline.inspection.page import Section, page, text, tiles
from pipeline.inspection.shard_sections import (
    codebook_sections,
    failures_section,
    shards_section,
    times_section,
)
from pipeline.inspection.summary import Summary, summarize
from pipeline.quantities import duration, large, size
from pipeline.rules import Rule
from pipeline.statistics import outcome_totals, overall_usage
from pipeline.storage import open_storage
from tokenizer.settings import UserError, from_dict, parse_yaml

REPORT_FILE, CONFIG_FILE = "report.html", "config.yaml"
GALLERY_SECONDS = 30.0


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
    sections = [
        shards_section(summary),
        *codebook_sections(summary),
        times_section(storage),
        failures_section(summary),
    ]
    if accounts is not None:
        steps = funnel(accounts, rules)
        shelves = []
        if gallery_seconds > 0:
            shelves = make_gallery(root, accounts, rules, seconds=gallery_seconds)
        sections[:1] = [
            funnel_section(accounts, steps),
            scores_section(accounts, rules),
            galleries_section(shelves),
            sections[0],
            captions_section(accounts),
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
        place = str(parse_yaml((root / CONFIG_FILE).read_text(encoding="utf-8"))["out"])
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


def _settings(path: Path) -> Section:
    content = f"<pre>{text(path.read_text(encoding='utf-8'))}</pre>" if path.exists() else ""
    return Section("settings", "Settings", content)


def _rules(path: Path) -> dict[str, Rule]:
    """The thresholds of the build; none when its config is missing or unreadable."""
    try:
        values: Any = parse_yaml(path.read_text(encoding="utf-8"))
        return from_dict(SelectSettings, values.get("select", {}), str(path)).rules
    except (OSError, ValueError, yaml.YAMLError, AttributeError, UserError):
        return {}
