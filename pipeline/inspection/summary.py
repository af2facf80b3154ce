"""Summary: what a dataset folder holds, from its accounts and statistics; no shard is read.

    summary = summarize("runs/demo/data")            # or s3://bucket/data
    summary.outcomes                 # {"kept": 1020, "dropped:too_static": 12, "error:corrupt": 3}
    code_usage(summary.statistics)   # of the samples in the shards

A finished dataset answers from `statistics.json`. One that is being made answers from its commits,
so far as there are any.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit_sum import COMMITS_FOLDER, sum_commits
from pipeline.distribution import describe, distribution_of
from pipeline.inspection.accounts import MANIFEST_FILE, accounts_file, score_columns, unreadable
from pipeline.shards.format import SHARDS_FILE, SUCCESS_FILE, ShardEntry, parse_declaration
from pipeline.shards.removal import REMOVED_FOLDER, read_removed
from pipeline.statistics import (
    Statistics,
    code_usage,
    further_token_sets,
    merge,
    outcome_totals,
    overall_usage,
)
from pipeline.storage import Storage, open_storage
from tokenizer.settings import UserError

STATISTICS_FILE = "statistics.json"
MAX_FAILURES = 1000


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known of a dataset; `outcomes` counts every clip ever considered."""

    root: str
    is_finished: bool
    fingerprint: str | None
    accounts_file: str | None
    outcomes: dict[str, int]
    failures: list[tuple[str, str]]
    """(uri, outcome) of what could not be read, at most MAX_FAILURES."""
    considered: dict[str, dict[str, Any]]
    """The distribution of each score over every clip that has it, kept or not."""
    num_shards: int
    shard_bytes: int
    num_removed: int
    """Samples that `tessera remove` took out and `tessera gc --rewrite` has not erased yet."""
    statistics: Statistics
    """Of the samples in the shards."""


def summarize(directory: str | Path) -> Summary:
    """The summary of a dataset; UserError when there is none or it is damaged."""
    storage = open_storage(directory)
    root = storage.root
    if "://" not in root and not Path(root).is_dir():
        raise UserError(f"{root}: no such folder")
    accounts = accounts_file(storage)
    is_finished = all(storage.size(name) is not None for name in (SUCCESS_FILE, SHARDS_FILE))
    fingerprint = None
    if is_finished:
        text = storage.read(SHARDS_FILE).decode("utf-8", "replace")
        fingerprint, _, _, shards = parse_declaration(text, f"{root}/{SHARDS_FILE}")
        statistics = _finished_statistics(storage, shards)
        num_shards, shard_bytes = len(shards), sum(shard.size_bytes for shard in shards)
        hidden_in = {shard.path for shard in shards}
    else:
        commits = [name for name in storage.names(COMMITS_FOLDER) if name.startswith("tokenize-")]
        if accounts is None and not storage.names(COMMITS_FOLDER):
            raise UserError(f"{root}: not a dataset (neither {MANIFEST_FILE} nor commits in it)")
        so_far = sum_commits(storage, commits)
        statistics, sizes = so_far.statistics, so_far.shard_bytes
        num_shards, shard_bytes = len(sizes), sum(sizes.values())
        hidden_in = set(sizes)
    outcomes: dict[str, int] = statistics["outcomes"]
    failures: list[tuple[str, str]] = []
    considered: dict[str, dict[str, Any]] = {}
    if accounts is not None:
        outcomes, failures, considered = _read_accounts(storage, accounts)
    return Summary(
        root=root,
        is_finished=is_finished,
        fingerprint=fingerprint,
        accounts_file=accounts,
        outcomes=outcomes,
        failures=failures,
        considered=considered,
        num_shards=num_shards,
        shard_bytes=shard_bytes,
        num_removed=_num_removed(storage, hidden_in),
        statistics=statistics,
    )


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON: what `tessera stats --json` prints."""
    statistics = summary.statistics
    return {
        "path": summary.root,
        "finished": summary.is_finished,
        "fingerprint": summary.fingerprint,
        **outcome_totals({"outcomes": summary.outcomes}),
        "outcomes": dict(sorted(summary.outcomes.items())),
        "failures": [{"uri": uri, "outcome": outcome} for uri, outcome in summary.failures],
        "shards": summary.num_shards,
        "shard_bytes": summary.shard_bytes,
        "removed": summary.num_removed,
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
        "codebook": _codebook(statistics, None),
        "further_codebooks": {
            name: _codebook(statistics, name) for name in further_token_sets(statistics)
        },
    }


def _codebook(statistics: Statistics, token_set: str | None) -> list[dict[str, Any]]:
    """The use of a token set's codes: of all together, then by bucket and scale."""
    overall = overall_usage(statistics, token_set)
    return [
        asdict(usage) | {"num_dead": usage.num_dead, "perplexity": usage.perplexity}
        for usage in (overall, *code_usage(statistics, token_set))
        if usage
    ]


def distributions(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """The distributions that have numbers in them, by name."""
    every = {
        "seconds": statistics["seconds"],
        "caption characters": statistics["caption_characters"],
        **dict(sorted(statistics["scores"].items())),
    }
    return {name: row for name, row in every.items() if row["count"]}


def _finished_statistics(storage: Storage, shards: list[ShardEntry]) -> Statistics:
    """`statistics.json`, or the sum of the shards' commits where there is none."""
    where = f"{storage.root}/{STATISTICS_FILE}"
    try:
        statistics = merge(json.loads(storage.read(STATISTICS_FILE)))
    except FileNotFoundError:
        return _statistics_of_shards(storage, shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({error}); run `tessera finalize` again") from None
    num_samples = sum(shard.num_samples for shard in shards)
    if statistics["samples"] != num_samples:
        raise UserError(
            f"{where}: of {statistics['samples']} samples, but the shards hold {num_samples}; "
            "run `tessera finalize` again"
        )
    return statistics


def _statistics_of_shards(storage: Storage, shards: list[ShardEntry]) -> Statistics:
    names = [name for name in storage.names(COMMITS_FOLDER) if name.startswith("tokenize-")]
    wanted = {shard.path for shard in shards}
    total = sum_commits(storage, names, wanted)
    missing = sorted(wanted - set(total.shard_bytes))
    if missing and names:
        raise UserError(
            f"{storage.root}: no commit for shard {missing[0]} ({len(missing)} of {len(shards)} "
            f"missing); was {COMMITS_FOLDER} deleted or not copied?"
        )
    if missing:  # shards that no build made: their number is known, and no more
        total.statistics["samples"] = sum(shard.num_samples for shard in shards)
    return total.statistics


def _read_accounts(
    storage: Storage, name: str
) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, dict[str, Any]]]:
    """(clips per outcome, files that could not be read, distributions of scores)."""
    try:
        with storage.open(name) as file:
            source = pq.ParquetFile(file, read_dictionary=["outcome"])
            scores = score_columns(source.schema_arrow)
            table = source.read(columns=["outcome", *scores])
            counts = pc.value_counts(table["outcome"].unify_dictionaries()).to_pylist()
            outcomes = {str(row["values"]): row["counts"] for row in counts}
            failures = []
            if any(outcome.startswith("error:") for outcome in outcomes):
                failures = _failures(source)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise unreadable(storage, name, error) from None
    for outcome in outcomes:
        if outcome != "kept" and not outcome.startswith(("dropped:", "error:")):
            raise UserError(f"{storage.root}/{name}: unknown outcome {outcome!r}")
    return outcomes, failures, {name: distribution_of(table[name].to_numpy()) for name in scores}


def _failures(accounts: pq.ParquetFile) -> list[tuple[str, str]]:
    """The first files that could not be read."""
    failures: list[tuple[str, str]] = []
    for batch in accounts.iter_batches(columns=["outcome", "uri"]):
        failed = batch.filter(pc.starts_with(batch["outcome"].cast(pa.string()), "error:"))
        failures += [(row["uri"], row["outcome"]) for row in failed.to_pylist()]
        if len(failures) >= MAX_FAILURES:
            break
    return failures[:MAX_FAILURES]


def _num_removed(storage: Storage, shards: Container[str]) -> int:
    """Samples that these shards still hold though their source was removed."""
    removed = read_removed(storage.names(REMOVED_FOLDER), storage.read, storage.root)
    return sum(len(rows) for path, rows in removed.rows.items() if path in shards)
