"""The funnel: what each rule took away, in the order of the rules and on its own.

    steps = funnel(accounts, settings.rules)
    steps[-1].clips_left, steps[-1].seconds_left       # what was kept
    steps[3].alone, steps[3].only                      # the same rule by itself

`accounts` is the table of all clips ever considered. A step's *sequential* yield is what was left
when it was done. Its *marginal* yield says what the order of the rules hides: how many clips the
rule holds for whatever the others say, and how many would be kept if just this rule were removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rules import Rule

COLUMNS = ("outcome", "start_seconds", "end_seconds")
FACTS = ("num_frames", "source_width", "source_height")
"""Columns that rules may name, besides scores: as num_frames, duration_seconds, width, height."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One outcome other than `kept`, and what was left after it."""

    outcome: str
    rule: Rule | None
    """None: not a rule of `select`, so there is no marginal yield."""
    clips: int
    seconds: float
    clips_left: int
    seconds_left: float
    alone: int | None
    """Clips with scores that this rule holds for."""
    only: int | None
    """Of these, the clips that no other rule holds for."""


def funnel(accounts: pa.Table, rules: Mapping[str, Rule]) -> list[Step]:
    """Errors first, then what was dropped before scores were looked at, then the rules in order."""
    outcomes = pc.cast(accounts["outcome"], pa.string()).combine_chunks().dictionary_encode()
    names = outcomes.dictionary.to_pylist()
    codes = outcomes.indices.to_numpy()
    seconds = np.nan_to_num(column(accounts, "end_seconds") - column(accounts, "start_seconds"))
    counts = np.bincount(codes, minlength=len(names))
    durations = np.bincount(codes, weights=seconds, minlength=len(names))
    place = {f"dropped:{name}": index for index, name in enumerate(rules)}

    def order(index: int) -> tuple[bool, int, int, str]:
        name = names[index]
        return not name.startswith("error:"), place.get(name, -1), -int(counts[index]), name

    # A rule decides only about clips that had no outcome before: kept ones, and dropped by rules.
    scored = np.isin(codes, [i for i, name in enumerate(names) if name == "kept" or name in place])
    holds = {name: scored & _holds(accounts, rule) for name, rule in rules.items()}
    num_holding = sum(holds.values(), start=np.zeros(len(codes), dtype=np.int64))
    clips_left, seconds_left = len(codes), float(seconds.sum())
    steps = []
    for index in sorted((i for i, name in enumerate(names) if name != "kept"), key=order):
        rule_name = names[index].removeprefix("dropped:") if names[index] in place else None
        clips_left -= int(counts[index])
        seconds_left -= float(durations[index])
        steps.append(
            Step(
                outcome=names[index],
                rule=rules[rule_name] if rule_name else None,
                clips=int(counts[index]),
                seconds=float(durations[index]),
                clips_left=clips_left,
                seconds_left=max(seconds_left, 0.0),
                alone=int(holds[rule_name].sum()) if rule_name else None,
                only=int((holds[rule_name] & (num_holding == 1)).sum()) if rule_name else None,
            )
        )
    return steps


def column(accounts: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as float64, NaN where there are none."""
    if name not in accounts.schema.names:
        return np.full(len(accounts), np.nan)
    return accounts[name].to_numpy(zero_copy_only=False).astype(np.float64)


def score(accounts: pa.Table, name: str) -> np.ndarray:
    """A score, or a plain fact of the clips, by the name that rules use."""
    if name == "duration_seconds":
        return column(accounts, "end_seconds") - column(accounts, "start_seconds")
    return column(accounts, f"source_{name}" if name in ("width", "height") else name)


def _holds(accounts: pa.Table, rule: Rule) -> np.ndarray:
    values = score(accounts, rule.score)
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    return compare[rule.comparison](values, rule.bound)  # of NaN: never
