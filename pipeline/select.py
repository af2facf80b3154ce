"""Select: which clips are kept, in which split and shard. Seconds; no decoding, no GPU.

Rules are read from the config and applied to stored scores, so a threshold can be changed after the
fact. Splits go by a hash of the source, so that no video is on both sides; or, to learn what a
generator makes of captions that it never saw, by a hash of the caption.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pipeline.clip import KEPT, Clip, clips_from_parquet, clips_to_parquet
from pipeline.commit import Store
from pipeline.config import SelectSettings
from pipeline.plan import PlannedSource
from pipeline.rules import Rule

SELECTION_FILE = "selection.parquet"


def select_clips(clips: Iterable[Clip], settings: SelectSettings) -> list[Clip]:
    """Every clip with its outcome decided and, when kept, its split."""
    rules = settings.rules
    selected = []
    for clip in clips:
        outcome = clip.outcome or outcome_of(clip, rules)
        split = ""
        if outcome == KEPT:
            split = split_of(held_together(clip, settings.hold_out), settings.val_share)
        selected.append(replace(clip, outcome=outcome, split=split))
    return selected


def outcome_of(clip: Clip, rules: dict[str, Rule]) -> str:
    """`kept`, or `dropped:<the first rule that holds>`."""
    for name, rule in rules.items():
        if rule.drops(clip.score(rule.score)):
            return f"dropped:{name}"
    return KEPT


def held_together(clip: Clip, hold_out: Literal["source", "caption"]) -> str:
    """What a clip shares with all clips that must be in its split: its source or its caption.

    Case and spaces make no other caption. A clip without a caption stays with its source.
    """
    words = (clip.caption or "").lower().split() if hold_out == "caption" else []
    return " ".join(words) or clip.source_id


def split_of(identity: str, val_share: float) -> str:
    """'val' for about `val_share` of all identities, by hash; stable as the collection grows."""
    digest = hashlib.sha256(f"split {identity}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


def group_for_shards(
    clips: Sequence[Clip], plan: Sequence[PlannedSource], samples_per_shard: int
) -> list[list[Clip]]:
    """Kept clips cut into shards in plan order: one split, bucket and generation each.

    A later generation never fills up earlier shards, and the places of a removed source stay empty.
    """
    kept: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.outcome == KEPT:
            kept.setdefault(clip.source_id, []).append(clip)
    taken: Counter[tuple[int, str, str]] = Counter()
    shards: dict[tuple[int, str, str, int], list[Clip]] = {}
    for row in plan:
        if row.skipped == "removed":
            for place, count in json.loads(row.gaps).items():
                split, _, bucket = place.partition("/")
                taken[row.generation, split, bucket] += count
        elif not row.skipped:
            for clip in kept.get(row.source_id, ()):
                group = (row.generation, clip.split, clip.bucket)
                shards.setdefault((*group, taken[group] // samples_per_shard), []).append(clip)
                taken[group] += 1
    return [members for _, members in sorted(shards.items())]


def write_selection(clips: Sequence[Clip], store: Store) -> None:
    store.write_file(SELECTION_FILE, lambda file: clips_to_parquet(clips, file))


def read_selection(store: Store) -> list[Clip] | None:
    """The selection on disk; None when `select` has not run."""
    try:
        return clips_from_parquet(store.storage.read(SELECTION_FILE))
    except FileNotFoundError:
        return None
