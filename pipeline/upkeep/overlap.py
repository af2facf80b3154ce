"""Overlap: what two datasets share: sources, clips, and clips that look alike.

    found = overlap("runs/monday", "runs/tuesday")
    found.shared_sources, found.near_share_of_hours
    found.pairs[0]                 # ClipPair(first="a/0.mp4 at 0.00 s", ..., bits=3)

Kept clips of different sources are near-duplicates when their picture hashes differ in at most
`near_bits` of 192 bits. The default was measured on 17 real videos and 102 copies of them, halved,
cut to a third, stretched, brightened, recoded by MPEG-4 and by H.264 down to CRF 38: 20 bits find
96% of 279 pairs (16: 94%, 28: 98%); clips of different scenes were at least 28 bits apart, 91 in
the median (2026-11-21). Other moments of a still scene are as near as copies of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit import Store
from pipeline.finalize import MANIFEST_FILE
from pipeline.picture_hash import BITS, hash_words
from pipeline.shards.table import read_table
from pipeline.upkeep.neighbours import neighbours
from tokenizer.settings import UserError

NEAR_BITS = 20
MAX_PAIRS = 10_000_000
_COLUMNS = [
    *("clip_id", "source_id", "uri", "outcome", "view"),
    *("start_seconds", "end_seconds", "picture_hash"),
]


@dataclass(frozen=True, kw_only=True)
class ClipPair:
    """Two clips of different sources that look alike, and in how many bits they differ."""

    first_uri: str
    first_seconds: float
    second_uri: str
    second_seconds: float
    bits: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the second dataset shares with the first; hours are of the second's kept clips.

    The first is the same as the second when a dataset is compared with itself: then sources and
    clips are not counted, and each pair comes once.
    """

    first: str
    second: str
    near_bits: int
    first_clips: int
    second_clips: int
    shared_sources: int
    shared_clips: int
    near_clips: int
    """Of the second: with a near-duplicate of another source in the first."""
    second_hours: float
    shared_source_hours: float
    shared_clip_hours: float
    near_hours: float
    pairs: tuple[ClipPair, ...]

    @property
    def near_share_of_hours(self) -> float:
        return self.near_hours / self.second_hours if self.second_hours else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def by_source(self) -> list[tuple[str, str, int, int]]:
        """(first uri, second uri, pairs, least bits), most pairs first."""
        counts: Counter[tuple[str, str]] = Counter()
        least: dict[tuple[str, str], int] = {}
        for pair in self.pairs:
            names = pair.first_uri, pair.second_uri
            counts[names] += 1
            least[names] = min(least.get(names, BITS), pair.bits)
        return [(*names, count, least[names]) for names, count in counts.most_common()]


def overlap(first: str | Path, second: str | Path, near_bits: int = NEAR_BITS) -> Overlap:
    """Compares two datasets, or one with itself.

    UserError when one has no manifest, or when there are more than MAX_PAIRS pairs.
    """
    if not 0 <= near_bits <= BITS // 2:
        raise UserError(f"--near ({near_bits}) must be 0 to {BITS // 2} bits of {BITS}")
    ours, theirs = Store(first), Store(second)
    a, b = _kept(ours), _kept(theirs)
    is_same = ours.root == theirs.root
    seconds = _column(b, "end_seconds") - _column(b, "start_seconds")
    shared_source = _is_in(b, a, "source_id") & (not is_same)
    shared_clip = _is_in(b, a, "clip_id") & (not is_same)
    places = _near_places(a, b, near_bits, is_same)
    near = np.zeros(b.num_rows, bool)
    near[places[:, 1]] = True
    if is_same:
        near[places[:, 0]] = True
    sources = set(pc.unique(a["source_id"]).to_pylist()) & set(b["source_id"].to_pylist())
    return Overlap(
        first=ours.root,
        second=theirs.root,
        near_bits=near_bits,
        first_clips=a.num_rows,
        second_clips=b.num_rows,
        shared_sources=0 if is_same else len(sources),
        shared_clips=int(shared_clip.sum()),
        near_clips=int(near.sum()),
        second_hours=float(seconds.sum()) / 3600,
        shared_source_hours=float(seconds[shared_source].sum()) / 3600,
        shared_clip_hours=float(seconds[shared_clip].sum()) / 3600,
        near_hours=float(seconds[near].sum()) / 3600,
        pairs=_pairs(a, b, places),
    )


def _kept(store: Store) -> pa.Table:
    """The kept clips of a dataset, one view of each."""
    try:
        data = store.storage.read(MANIFEST_FILE)
        table = read_table(data, _COLUMNS)
        if table.schema.names != _COLUMNS:
            table = table.select(_COLUMNS)
    except FileNotFoundError:
        raise UserError(
            f"{store.root}: no {MANIFEST_FILE}; name a dataset that `tessera build` finished"
        ) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{store.root}/{MANIFEST_FILE}: cannot be read ({error})") from None
    return table.filter(pc.and_(pc.equal(table["outcome"], "kept"), pc.equal(table["view"], 0)))


def _near_places(a: pa.Table, b: pa.Table, near_bits: int, is_same: bool) -> np.ndarray:
    """Rows (i of a, j of b) of near-duplicates, int64 [p, 2]."""
    in_a, hashes_a = _hashes(a)
    in_b, hashes_b = _hashes(b)
    try:
        close = neighbours(hashes_a, hashes_b, near_bits, MAX_PAIRS)
    except OverflowError:
        raise UserError(
            f"more than {MAX_PAIRS:,} pairs of clips within {near_bits} bits; lower --near"
        ) from None
    places = np.stack([in_a[close[:, 0]], in_b[close[:, 1]]], axis=1)
    if is_same:
        places = places[places[:, 0] < places[:, 1]]
    ids = pa.chunked_array([*a["source_id"].chunks, *b["source_id"].chunks], pa.string())
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    differ = codes[: a.num_rows][places[:, 0]] != codes[a.num_rows :][places[:, 1]]
    return places[differ]


def _hashes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have a hash, and these as words [n, 3]."""
    texts = table["picture_hash"].to_pylist()
    rows = [row for row, text in enumerate(texts) if text]
    return np.array(rows, np.int64), hash_words([texts[row] for row in rows])


def _pairs(a: pa.Table, b: pa.Table, places: np.ndarray) -> tuple[ClipPair, ...]:
    first, second = a.take(places[:, 0]), b.take(places[:, 1])
    words = [hash_words(each["picture_hash"].to_pylist()) for each in (first, second)]
    bits = np.bitwise_count(words[0] ^ words[1]).sum(axis=1, dtype=np.int64)
    columns: Sequence[Sequence[Any]] = [
        first["uri"].to_pylist(),
        first["start_seconds"].to_pylist(),
        second["uri"].to_pylist(),
        second["start_seconds"].to_pylist(),
        bits.tolist(),
    ]
    return tuple(
        ClipPair(
            first_uri=uri, first_seconds=start, second_uri=other, second_seconds=at, bits=differ
        )
        for uri, start, other, at, differ in zip(*columns)
    )


def _is_in(table: pa.Table, other: pa.Table, name: str) -> np.ndarray:
    values = pc.is_in(table[name], other[name].combine_chunks())
    return values.to_numpy().astype(bool)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()
