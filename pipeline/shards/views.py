"""Views: several samples of one clip, of which an epoch shows one.

    views = find_views(samples.clips(), samples.shard_counts)
    views.samples(items, seed=0, epoch=3)      # which sample each clip is shown by

Samples whose sidecar gives them the same `clip` are views of it. The clips of an epoch are numbered
by their first sample, so they keep the order of the shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.shards.order import key_words, mixed


@dataclass(frozen=True)
class Views:
    """Clips and their samples: those of clip i are members[starts[i] : starts[i] + counts[i]]."""

    clips: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    shard_counts: np.ndarray

    def samples(self, items: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """int64: the sample that shows each clip in this epoch."""
        drawn = mixed(self.clips[items] ^ key_words(seed, epoch, "view")[0])
        view = (drawn % self.counts[items].astype(np.uint64)).astype(np.int64)
        return self.members[self.starts[items] + view]


def find_views(clips: np.ndarray, shard_counts: np.ndarray) -> Views | None:
    """The clips that these samples (uint64 [n], in shard order) show; None when each shows one."""
    members = np.argsort(clips, kind="stable")
    ordered = clips[members]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if len(starts) == len(clips):
        return None
    counts = np.diff(starts, append=len(clips))
    by_first = np.argsort(members[starts])
    starts, counts = starts[by_first], counts[by_first]
    shard_ends = np.cumsum([0, *shard_counts])
    return Views(
        clips=ordered[starts],
        members=members,
        starts=starts,
        counts=counts,
        shard_counts=np.diff(np.searchsorted(members[starts], shard_ends)),
    )
