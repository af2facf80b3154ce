"""Statistics: what is inside a unit of work, as plain JSON that adds up.

Every commit carries one such record, and a dataset's statistics are the sum of its commits': no
shard is read again, however many there are. All that is summed is an integer, so the sum is the
same bits in whatever order the records are added.

    tally = Tally()
    tally.add_sample(metadata, codes, schedule.scale_of_token, codebook_size=4096)
    tally.add_outcome("dropped:too_static")
    record = tally.to_json()
    total = merge(record, other)
    code_usage(total)[0].perplexity

Tokens and codes are those of the primary token set; the codes of further ones are counted under
`further`, by the set's name, where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.codebook_use import CodeCounts, ScaleUsage, usage_of
from pipeline.distribution import add_distribution, add_number, empty_distribution

Statistics = dict[str, Any]

VERSION = 2
GROUPED_BY = ("label", "bucket", "split")
NO_VALUE = "(none)"
_TOTALS = ("samples", "frames", "tokens", "bytes")
_COUNTED = ("outcomes", "missing_scores", "resolutions", "captioned_by")
_DISTRIBUTIONS = ("seconds", "caption_characters")


class Tally:
    """Statistics in the making; `to_json` is the record so far."""

    def __init__(self) -> None:
        self._record: Statistics = {
            **dict.fromkeys(_TOTALS, 0),
            **{name: {} for name in _COUNTED},
            **{name: empty_distribution() for name in _DISTRIBUTIONS},
            "scores": {},
            "by": {name: {} for name in GROUPED_BY},
        }
        self._codes: dict[str, CodeCounts] = {}
        self._further: dict[str, dict[str, CodeCounts]] = {}

    def add_outcome(self, outcome: str, count: int = 1) -> None:
        """Counts clips that ended as `kept`, `dropped:<rule>` or `error:<class>`."""
        if outcome != "kept" and not outcome.startswith(("dropped:", "error:")):
            raise ValueError(f"outcome {outcome!r} is not kept, dropped:<rule> or error:<class>")
        _count(self._record["outcomes"], outcome, count)

    def add_sample(
        self,
        metadata: Mapping[str, Any],
        codes: np.ndarray | None = None,
        scale_of_token: np.ndarray | None = None,
        codebook_size: int | None = None,
        size_bytes: int = 0,
    ) -> None:
        """Adds a sample: its metadata, and its codes (1-D, in [0, codebook_size)).

        `scale_of_token` [num_tokens] says which scale each code belongs to (default: one scale).
        Keys that the metadata lacks are not counted; a score of None or NaN counts as missing.
        """
        record = self._record
        num_tokens = 0 if codes is None else len(codes)
        num_frames = int(metadata.get("num_frames") or 0)
        seconds = _duration(metadata)
        record["samples"] += 1
        record["frames"] += num_frames
        record["tokens"] += num_tokens
        record["bytes"] += size_bytes
        if seconds is not None:
            add_number(record["seconds"], seconds)
        if metadata.get("caption"):
            add_number(record["caption_characters"], len(metadata["caption"]))
            _count(record["captioned_by"], str(metadata.get("caption_by") or NO_VALUE))
        for name, score in (metadata.get("scores") or {}).items():
            if score is None or not math.isfinite(score):
                _count(record["missing_scores"], name)
            else:
                add_number(record["scores"].setdefault(name, empty_distribution()), score)
        if metadata.get("height") and metadata.get("width"):
            _count(record["resolutions"], f"{metadata['width']}x{metadata['height']}")
        for name in GROUPED_BY:
            value = metadata.get(name)
            group = record["by"][name].setdefault(NO_VALUE if value is None else str(value), {})
            _count(group, "samples")
            _count(group, "frames", num_frames)
            _count(group, "tokens", num_tokens)
            _count(group, "milliseconds", round(1000 * (seconds or 0.0)))
        if codes is not None and codebook_size is not None:
            _codes_of(self._codes, metadata, codebook_size).add(codes, scale_of_token)

    def add_further(
        self,
        token_set: str,
        metadata: Mapping[str, Any],
        codes: np.ndarray,
        scale_of_token: np.ndarray,
        codebook_size: int,
    ) -> None:
        """Adds the codes that a further token set has of a sample."""
        counts = self._further.setdefault(token_set, {})
        _codes_of(counts, metadata, codebook_size).add(codes, scale_of_token)

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Adds a record, which stays as it is.

        Raises ValueError when it has another version, or codes of another codebook.
        """
        if record.get("version") != VERSION:
            raise ValueError(f"statistics version {record.get('version')!r} is not {VERSION}")
        mine = self._record
        for name in _TOTALS:
            mine[name] += record[name]
        for name in _COUNTED:
            _add_counts(mine[name], record[name])
        for name in _DISTRIBUTIONS:
            add_distribution(mine[name], record[name])
        for name, row in record["scores"].items():
            add_distribution(mine["scores"].setdefault(name, empty_distribution()), row)
        for name, groups in record["by"].items():
            for value, counts in groups.items():
                _add_counts(mine["by"].setdefault(name, {}).setdefault(value, {}), counts)
        _add_codes(self._codes, record["codes"])
        for token_set, codes in record.get("further", {}).items():
            _add_codes(self._further.setdefault(token_set, {}), codes)

    def to_json(self) -> Statistics:
        """The record: plain JSON, which later additions do not change."""
        codes = {bucket: counts.to_json() for bucket, counts in self._codes.items()}
        record = {"version": VERSION, **_copy(self._record), "codes": codes}
        if self._further:
            record["further"] = {
                token_set: {bucket: counts.to_json() for bucket, counts in codes.items()}
                for token_set, codes in self._further.items()
            }
        return record


def merge(*records: Mapping[str, Any]) -> Statistics:
    """The statistics of everything that the records describe; the records stay as they are.

    Raises ValueError when a record has another version, or codes of another codebook.
    """
    tally = Tally()
    for record in records:
        tally.add_record(record)
    return tally.to_json()


def outcome_totals(statistics: Mapping[str, Any]) -> dict[str, int]:
    """Clips that came in, and how they ended: n_in = n_kept + n_dropped + n_error."""
    totals = {"n_in": 0, "n_kept": 0, "n_dropped": 0, "n_error": 0}
    for outcome, count in statistics["outcomes"].items():
        totals["n_in"] += count
        totals[f"n_{outcome.partition(':')[0]}"] += count
    return totals


def further_token_sets(statistics: Mapping[str, Any]) -> list[str]:
    """The names of the further token sets whose codes are counted."""
    return sorted(statistics.get("further", {}))


def code_counts(
    statistics: Mapping[str, Any], token_set: str | None = None
) -> dict[str, CodeCounts]:
    """The counts of every bucket, by name, of a token set (default: the primary one).

    ValueError when the record is damaged.
    """
    counted = statistics["codes"] if token_set is None else statistics["further"][token_set]
    result = {}
    for bucket, record in sorted(counted.items()):
        result[bucket] = CodeCounts(record["codebook_size"])
        result[bucket].add_record(record)
    return result


def code_usage(statistics: Mapping[str, Any], token_set: str | None = None) -> list[ScaleUsage]:
    """Codebook use per bucket and scale, in order."""
    counts = code_counts(statistics, token_set)
    return [usage for bucket, each in counts.items() for usage in each.usage(bucket)]


def overall_usage(statistics: Mapping[str, Any], token_set: str | None = None) -> ScaleUsage | None:
    """Codebook use of all buckets and scales together; None when there are no codes."""
    every = list(code_counts(statistics, token_set).values())
    if not every:
        return None
    size = every[0].codebook_size
    counted = [each.counts.sum(axis=0) for each in every if each.counts is not None]
    if counted:
        return usage_of("all", -1, np.sum(counted, axis=0))
    tokens = sum(int(each.tokens.sum()) for each in every)
    maps = [each.is_used for each in every if each.is_used is not None]
    num_used = int(np.any(maps, axis=0).sum()) if maps else None
    return ScaleUsage("all", -1, tokens, size, num_used, None)


def _duration(metadata: Mapping[str, Any]) -> float | None:
    if metadata.get("kind") == "image":
        return None
    start, end = metadata.get("start_seconds"), metadata.get("end_seconds")
    if start is not None and end is not None:
        return end - start
    if metadata.get("num_frames") and metadata.get("fps"):
        return metadata["num_frames"] / metadata["fps"]
    return None


def _codes_of(
    counts: dict[str, CodeCounts], metadata: Mapping[str, Any], codebook_size: int
) -> CodeCounts:
    """The counts of a sample's bucket."""
    return _codes_in(counts, str(metadata.get("bucket") or NO_VALUE), codebook_size)


def _codes_in(counts: dict[str, CodeCounts], bucket: str, codebook_size: int) -> CodeCounts:
    if bucket not in counts:
        counts[bucket] = CodeCounts(codebook_size)
    if counts[bucket].codebook_size != codebook_size:
        sizes = f"{counts[bucket].codebook_size} and {codebook_size}"
        raise ValueError(f"codes of codebooks of {sizes} entries do not add up")
    return counts[bucket]


def _add_codes(counts: dict[str, CodeCounts], records: Mapping[str, Any]) -> None:
    for bucket, record in records.items():
        _codes_in(counts, bucket, record["codebook_size"]).add_record(record)


def _add_counts(total: dict[str, int], other: Mapping[str, int]) -> None:
    for name, count in other.items():
        total[name] = total.get(name, 0) + count


def _count(table: dict[str, int], name: str, count: int = 1) -> None:
    table[name] = table.get(name, 0) + count


def _copy(value: Any) -> Any:
    return {name: _copy(each) for name, each in value.items()} if isinstance(value, dict) else value
