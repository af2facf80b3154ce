"""Timings: where the time of a build went, from the `run` of its commits.

    for stage in stage_times(open_storage("runs/demo/data")):
        stage.name, stage.num_units, stage.work_seconds, stage.hosts

A `run` says who made a commit and how long it took; nothing else in a dataset depends on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.commit_sum import COMMITS_FOLDER, read_commits
from pipeline.storage import Storage

STAGES = ("annotate", "caption", "tokenize")


@dataclass
class StageTimes:
    """The commits of one stage together."""

    name: str
    num_units: int = 0
    num_clips: int = 0
    work_seconds: float = 0.0
    """The units' own seconds, added up."""
    encode_seconds: float = 0.0
    """Of these, seconds in the model."""
    num_encoded: int = 0
    longest_seconds: float = 0.0
    span: tuple[float, float] | None = None
    """When the first unit began and the last ended (Unix time), where the commits say so."""
    hosts: Counter[str] = field(default_factory=Counter)
    """Units by host."""


def stage_times(storage: Storage) -> list[StageTimes]:
    """One record per stage that has commits, in the order of the stages."""
    stages: dict[str, StageTimes] = {}
    names = [name for name in storage.names(COMMITS_FOLDER) if name.partition("-")[0] in STAGES]
    for name, record in read_commits(storage, names):
        stage = name.partition("-")[0]
        _add(stages.setdefault(stage, StageTimes(stage)), record)
    return [stages[name] for name in STAGES if name in stages]


def _add(stage: StageTimes, record: Mapping[str, Any]) -> None:
    run, result = record.get("run") or {}, record.get("result") or {}
    seconds = _number(run, "seconds")
    stage.num_units += 1
    stage.num_clips += int(_number(result, "n_in"))
    stage.work_seconds += seconds
    stage.longest_seconds = max(stage.longest_seconds, seconds)
    stage.encode_seconds += _number(run, "encode_seconds")
    stage.num_encoded += int(_number(run, "num_encoded"))
    stage.hosts[str(run.get("host", "unknown"))] += 1
    start, end = _number(run, "started_at"), _number(run, "finished_at")
    if 0 < start <= end:
        first, last = stage.span or (start, end)
        stage.span = min(first, start), max(last, end)


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) and value >= 0 else 0.0
