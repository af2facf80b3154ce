"""Union: the rows of several manifests as those of one dataset.

    union = unite([manifest_a, manifest_b], removed={...})
    union.rows                  # [(0, clip), (0, clip), (1, clip), ...]
    union.taken[1, "parts/x.tar"]       # rows of that shard of the second dataset, ascending

A sample is taken from the first dataset that has its key. A clip is one row: as it was kept, where
any dataset kept it, else as the first dataset has it. A removed source is one row without a name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pipeline.clip import KEPT, Clip, failed_source
from pipeline.select import held_together


@dataclass(frozen=True)
class Union:
    """Each row with the number of the dataset it is from, and what is taken of each shard."""

    rows: list[tuple[int, Clip]]
    taken: dict[tuple[int, str], list[int]]
    errors: dict[int, dict[str, str]]
    """The outcome of each clip that is an error, by dataset."""


def unite(manifests: Sequence[Sequence[Clip]], removed: Collection[str] = ()) -> Union:
    """The rows of all manifests, in order; `shard` and `row` are still those of their dataset."""
    owner: dict[str, int] = {}
    kept_clips: set[str] = set()
    for number, manifest in enumerate(manifests):
        for clip in manifest:
            if clip.outcome == KEPT and clip.source_id not in removed and clip.key not in owner:
                owner[clip.key] = number
                kept_clips.add(clip.clip_id)
    rows: list[tuple[int, Clip]] = []
    taken: dict[tuple[int, str], list[int]] = defaultdict(list)
    errors: dict[int, dict[str, str]] = {number: {} for number in range(len(manifests))}
    seen: set[tuple[str, str]] = set()
    for number, manifest in enumerate(manifests):
        for clip in manifest:
            row = _row(clip, number, owner, kept_clips, removed)
            if row is None or _identity(row) in seen:
                continue
            seen.add(_identity(row))
            rows.append((number, row))
            if row.outcome == KEPT:
                taken[number, row.shard].append(row.row)
            elif row.outcome.startswith("error:"):
                errors[number][row.clip_id] = row.outcome
    return Union(rows, {place: sorted(numbers) for place, numbers in taken.items()}, errors)


def split_conflict(
    manifests: Sequence[Sequence[Clip]], removed: Collection[str] = ()
) -> tuple[Clip, int, Clip, int] | None:
    """Clips in two splits that belong in one, each with its dataset; None without any.

    A dataset that has a source in both splits holds out captions: then clips of one caption belong
    together, else those of one source.
    """
    kept = [
        (number, clip)
        for number, manifest in enumerate(manifests)
        for clip in manifest
        if clip.outcome == KEPT and clip.source_id not in removed
    ]
    splits: dict[tuple[int, str], str] = {}
    by_caption = any(
        splits.setdefault((number, clip.source_id), clip.split) != clip.split
        for number, clip in kept
    )
    first: dict[str, tuple[Clip, int]] = {}
    for number, clip in kept:
        identity = held_together(clip, "caption" if by_caption else "source")
        before, where = first.setdefault(identity, (clip, number))
        if before.split != clip.split:
            return before, where, clip, number
    return None


def _row(
    clip: Clip,
    number: int,
    owner: dict[str, int],
    kept_clips: set[str],
    removed: Collection[str],
) -> Clip | None:
    """The clip as a row of the union; None when another dataset's row stands for it."""
    if clip.source_id in removed:
        return failed_source(clip.source_id, "", "dropped:removed")
    if clip.outcome != KEPT:
        return None if clip.clip_id in kept_clips else clip
    if owner[clip.key] == number:
        return clip
    if clip.clip_id in kept_clips:
        return None
    return replace(clip, outcome="dropped:duplicate", split="", shard="", row=-1, code_key="")


def _identity(clip: Clip) -> tuple[str, str]:
    """What makes two rows the same: the clip, or for a row of a whole file its name too."""
    return clip.clip_id, "" if clip.kind else clip.uri
