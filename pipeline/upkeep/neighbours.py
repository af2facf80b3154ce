"""Neighbours: all pairs of picture hashes that differ in few bits, exactly.

    pairs = neighbours(hash_words(hashes_a), hash_words(hashes_b), bits=20)
    pairs[0]                       # [17, 4]: the 18th of a and the 5th of b

A hash of 192 bits is cut into 12 bands of 16. Two hashes that differ in at most `bits` bits differ
in at most bits // 12 of some band, so it is enough to compare those whose band is equal up to so
many flips (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012). Where that would compare
more than all pairs, all pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

BANDS = 12
_BAND_BITS = 16
_VALUES = 1 << _BAND_BITS
_CHUNK = 1 << 21  # candidates looked at a time: 2 x 16 MiB of indices
_BLOCK = 1 << 17  # pairs compared at a time when all are: they stay in the processor's cache
_FEW_PAIRS = 1 << 24  # not worth tables
_BLOCK_COST = 1 / 20  # of a pair in a block, against a candidate (measured: 3 ns, 60 ns)


def neighbours(first: np.ndarray, second: np.ndarray, bits: int, limit: int) -> np.ndarray:
    """Pairs (i, j), int64 [p, 2] in order, of hashes uint64 [n, 3] and [m, 3] within `bits` bits.

    OverflowError when there are more than `limit` pairs.
    """
    unique_first, groups_first = _grouped(first)
    unique_second, groups_second = _grouped(second)
    if not len(first) or not len(second):
        return np.empty((0, 2), np.int64)
    close = _close(unique_first, unique_second, bits, limit)
    pairs = _expanded(close, groups_first, groups_second, limit)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@dataclass(frozen=True)
class _Groups:
    """The places of each distinct hash: order[starts[i] : starts[i] + sizes[i]]."""

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def _grouped(hashes: np.ndarray) -> tuple[np.ndarray, _Groups]:
    distinct, inverse = np.unique(hashes, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    sizes = np.bincount(inverse, minlength=len(distinct))
    return distinct, _Groups(np.argsort(inverse, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def _expanded(close: np.ndarray, first: _Groups, second: _Groups, limit: int) -> np.ndarray:
    """Every place of the one hash with every place of the other, for pairs of distinct hashes."""
    i, j = close[:, 0], close[:, 1]
    counts = first.sizes[i] * second.sizes[j]
    total = int(counts.sum())
    if total > limit:
        raise OverflowError(f"more than {limit} pairs")
    pair = np.repeat(np.arange(len(close)), counts)
    rank = np.arange(total) - (np.cumsum(counts) - counts)[pair]
    in_first, in_second = np.divmod(rank, second.sizes[j][pair])
    return np.stack(
        [
            first.order[first.starts[i][pair] + in_first],
            second.order[second.starts[j][pair] + in_second],
        ],
        axis=1,
    )


def _close(first: np.ndarray, second: np.ndarray, bits: int, limit: int) -> np.ndarray:
    """Pairs of distinct hashes, each once."""
    found: list[np.ndarray] = []
    num_found = 0
    for i, j in _candidates(first, second, bits):
        near = _within(first, second, i, j, bits)
        found.append(i[near] * len(second) + j[near])
        num_found += len(found[-1])
        if num_found > limit:
            found = [np.unique(np.concatenate(found))]
            num_found = len(found[0])
            if num_found > limit:
                raise OverflowError(f"more than {limit} pairs")
    codes = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    return np.stack(np.divmod(codes, len(second)), axis=1)


def _within(
    first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray, bits: int
) -> np.ndarray:
    """The places of candidates that are near; most leave after their first word."""
    places = np.arange(len(i))
    distance = np.zeros(len(i), np.uint8)
    for word in range(first.shape[1]):
        difference = first[i[places], word] ^ second[j[places], word]
        distance = distance + np.bitwise_count(difference)
        near = distance <= bits
        places, distance = places[near], distance[near]
    return places


def _candidates(
    first: np.ndarray, second: np.ndarray, bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs among which all near ones are, some of them several times."""
    bands_first, bands_second = _bands(first), _bands(second)
    flips = _flips(bits // BANDS)
    num_pairs = len(first) * len(second)
    if num_pairs <= _FEW_PAIRS or (
        _num_candidates(bands_first, bands_second, flips) > _BLOCK_COST * num_pairs
    ):
        yield from _all_near(first, second, bits)
        return
    everything = np.arange(len(second))
    for band in range(BANDS):
        order = np.argsort(bands_first[:, band], kind="stable")
        counts = np.bincount(bands_first[:, band], minlength=_VALUES)
        starts = np.cumsum(counts) - counts
        for flip in flips:
            values = bands_second[:, band] ^ flip
            matches = counts[values]
            edges = np.cumsum(matches)
            begin = 0
            while begin < len(values):
                done = edges[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(edges, done + _CHUNK, side="right")))
                repeats = matches[begin:end]
                total = int(repeats.sum())
                within = np.arange(total) - np.repeat(np.cumsum(repeats) - repeats, repeats)
                i = order[np.repeat(starts[values[begin:end]], repeats) + within]
                yield i, np.repeat(everything[begin:end], repeats)
                begin = end


def _all_near(
    first: np.ndarray, second: np.ndarray, bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The near pairs, from a comparison of all."""
    rows = max(1, _BLOCK // len(second))
    words = np.ascontiguousarray(second.T)
    for start in range(0, len(first), rows):
        block = first[start : start + rows]
        distance = np.bitwise_count(block[:, :1] ^ words[0])
        for word in range(1, len(words)):
            distance += np.bitwise_count(block[:, word : word + 1] ^ words[word])
        i, j = np.divmod(np.flatnonzero(distance <= bits), len(second))
        yield i + start, j


def _bands(hashes: np.ndarray) -> np.ndarray:
    """uint16 [n, 12]."""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(len(hashes), BANDS)


def _flips(most: int) -> np.ndarray:
    """All 16-bit numbers of at most so many ones."""
    return np.array(
        [
            sum(1 << bit for bit in chosen)
            for count in range(min(most, _BAND_BITS) + 1)
            for chosen in combinations(range(_BAND_BITS), count)
        ],
        dtype=np.uint16,
    )


def _num_candidates(first: np.ndarray, second: np.ndarray, flips: np.ndarray) -> int:
    values = np.arange(_VALUES, dtype=np.uint16)
    total = 0
    for band in range(BANDS):
        counts = np.bincount(first[:, band], minlength=_VALUES)
        others = np.bincount(second[:, band], minlength=_VALUES)
        total += sum(int(counts @ others[values ^ flip]) for flip in flips)
    return total
