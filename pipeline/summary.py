"""Summary: what a dataset folder holds, from its commits and its accounts; no shard is read.

    summary = summarize("runs/demo/data")
    summary.outcomes                 # {"kept": 1020, "dropped:too_static": 12, "error:corrupt": 3}
    code_usage(summary.statistics)   # of the samples in the shards

Works on a finished dataset and on one that is being made: then it counts what is committed so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.shards.format import SHARDS_FILE, SUCCESS_FILE, ShardEntry, parse_declaration
from pipeline.statistics import (
    Statistics,
    code_usage,
    deviation,
    distribution_of,
    mean,
    merge,
    outcome_totals,
    overall_usage,
    quantile,
)
from tokenizer.settings import UserError

ACCOUNTS_FILES = ("manifest.parquet", "selection.parquet")
COMMITS_FOLDER = "_commits"
MAX_FAILURES = 1000
NOT_SCORES = ("start_seconds", "end_seconds", "fps")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known of a dataset; `outcomes` counts every clip ever considered."""

    root: Path
    is_finished: bool
    fingerprint: str | None
    accounts_file: Path | None
    outcomes: dict[str, int]
    failures: list[tuple[str, str]]
    """(uri, outcome) of what could not be read, at most MAX_FAILURES."""
    considered: dict[str, dict[str, Any]]
    """The distribution of each score over every clip that has it, kept or not."""
    num_shards: int
    shard_bytes: int
    statistics: Statistics
    """Of the samples in the shards."""


def summarize(directory: str | Path) -> Summary:
    """The summary of a dataset folder; UserError when the folder is not one or is damaged."""
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    accounts = next((root / name for name in ACCOUNTS_FILES if (root / name).exists()), None)
    is_finished = (root / SUCCESS_FILE).exists() and (root / SHARDS_FILE).exists()
    if accounts is None and not (root / COMMITS_FOLDER).is_dir():
        raise UserError(f"{root}: not a dataset (neither {ACCOUNTS_FILES[0]} nor commits in it)")
    fingerprint, shards = None, None
    if is_finished:
        text = (root / SHARDS_FILE).read_text(encoding="utf-8")
        fingerprint, _, _, shards = parse_declaration(text, str(root / SHARDS_FILE))
    results = _shard_results(root, shards)
    try:
        statistics = merge(*(result["statistics"] for result in results))
        sizes = [result["parts"][0]["size_bytes"] for result in results]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / COMMITS_FOLDER}: damaged statistics ({error})") from None
    outcomes: dict[str, int] = statistics["outcomes"]
    failures: list[tuple[str, str]] = []
    considered: dict[str, dict[str, Any]] = {}
    if accounts is not None:
        table = _read_accounts(accounts)
        outcomes, failures = _outcomes(table)
        considered = {
            name: distribution_of(table[name].to_numpy()) for name in score_columns(table)
        }
    return Summary(
        root=root,
        is_finished=is_finished,
        fingerprint=fingerprint,
        accounts_file=accounts,
        outcomes=outcomes,
        failures=failures,
        considered=considered,
        num_shards=len(results),
        shard_bytes=sum(sizes),
        statistics=statistics,
    )


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON: what `tessera stats --json` prints."""
    statistics = summary.statistics
    usages = [usage for usage in (overall_usage(statistics), *code_usage(statistics)) if usage]
    return {
        "path": str(summary.root),
        "finished": summary.is_finished,
        "fingerprint": summary.fingerprint,
        **outcome_totals({"outcomes": summary.outcomes}),
        "outcomes": dict(sorted(summary.outcomes.items())),
        "failures": [{"uri": uri, "outcome": outcome} for uri, outcome in summary.failures],
        "shards": summary.num_shards,
        "shard_bytes": summary.shard_bytes,
        "samples": statistics["samples"],
        "frames": statistics["frames"],
        "tokens": statistics["tokens"],
        "array_bytes": statistics["bytes"],
        "by": statistics["by"],
        "numbers": {name: describe(row) for name, row in distributions(statistics).items()},
        "considered": {name: describe(row) for name, row in summary.considered.items()},
        "missing_scores": statistics["missing_scores"],
        "resolutions": statistics["resolutions"],
        "captioned_by": statistics["captioned_by"],
        "codebook": [
            asdict(usage) | {"num_dead": usage.num_dead, "perplexity": usage.perplexity}
            for usage in usages
        ],
    }


def distributions(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """The distributions that have numbers in them, by name."""
    every = {
        "seconds": statistics["seconds"],
        "caption characters": statistics["caption_characters"],
        **dict(sorted(statistics["scores"].items())),
    }
    return {name: row for name, row in every.items() if row["count"]}


def score_columns(accounts: pa.Table | pa.Schema) -> list[str]:
    """The columns of the accounts that are scores."""
    schema = accounts.schema if isinstance(accounts, pa.Table) else accounts
    return [
        field.name
        for field in schema
        if field.type == pa.float64() and field.name not in NOT_SCORES
    ]


def describe(distribution: Mapping[str, Any]) -> dict[str, Any]:
    """A distribution in nine numbers; the quantiles are within 5%."""
    return {
        "count": distribution["count"],
        "mean": mean(distribution),
        "deviation": deviation(distribution),
        "min": distribution["min"],
        "p5": quantile(distribution, 0.05),
        "p50": quantile(distribution, 0.5),
        "p95": quantile(distribution, 0.95),
        "max": distribution["max"],
    }


def _shard_results(root: Path, shards: list[ShardEntry] | None) -> list[dict[str, Any]]:
    """Results of the commits that made these shards, in order; None: of every shard so far."""
    made = {}
    for path in sorted((root / COMMITS_FOLDER).glob("tokenize-*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))["result"]
            if result["parts"]:
                made[result["parts"][0]["path"]] = result
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{path}: not a commit of this version, or damaged") from None
    if shards is None:
        return list(made.values())
    missing = [shard.path for shard in shards if shard.path not in made]
    if missing:
        raise UserError(
            f"{root}: no commit for shard {missing[0]} ({len(missing)} of {len(shards)} missing); "
            f"was {COMMITS_FOLDER} deleted or not copied?"
        )
    return [made[shard.path] for shard in shards]


def _read_accounts(path: Path) -> pa.Table:
    try:
        names = pq.read_schema(path)
        wanted = ["outcome", "uri", *score_columns(names)]
        return pq.read_table(path, columns=wanted)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _outcomes(table: pa.Table) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Counts per outcome, and the first files that could not be read."""
    counts = pc.value_counts(table["outcome"])
    outcomes = {row["values"]: row["counts"] for row in counts.to_pylist()}
    failed = table.filter(pc.starts_with(table["outcome"], "error:")).slice(0, MAX_FAILURES)
    return outcomes, [(row["uri"], row["outcome"]) for row in failed.to_pylist()]
