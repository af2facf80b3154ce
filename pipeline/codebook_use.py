"""Codebook use: how often each code occurs at each scale, exactly, in few bytes.

    counts = CodeCounts(codebook_size=4096)
    counts.add(codes, schedule.scale_of_token)       # a sample: flat codes, and the scale of each
    record = counts.to_json()                        # small, exact, the same bytes on any machine
    counts.add_record(record)                        # records add up
    counts.usage("t9_h64_w64")[0].perplexity

A scale is one string: `dense u2 <base64>`, all counts as little-endian integers of the narrowest
width that holds them, or `sparse u1 <base64> <base64>`, the codes that occur (2 bytes each) and
their counts. No compressor: its bytes would depend on the library. Codebooks above 65,536 entries
have no counts; up to 262,144 a bitmap says which codes occur at all; larger ones only say how many
tokens there are.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_COUNTED = 1 << 16
LARGEST_MAPPED = 1 << 18
MAX_COUNTS = 1 << 25
"""Scales times codes that a record may claim: 256 MB."""
_WIDTHS = {
    "u1": np.dtype("<u1"),
    "u2": np.dtype("<u2"),
    "u4": np.dtype("<u4"),
    "u8": np.dtype("<u8"),
}


@dataclass(frozen=True)
class ScaleUsage:
    """How the codes of one scale of one bucket use the codebook; None: not counted."""

    bucket: str
    scale: int
    """-1: all scales together."""
    num_tokens: int
    codebook_size: int
    num_used: int | None
    entropy_bits: float | None

    @property
    def perplexity(self) -> float | None:
        """The number of equally likely codes that would have this entropy."""
        return None if self.entropy_bits is None else 2.0**self.entropy_bits

    @property
    def num_dead(self) -> int | None:
        """Codes that no sample of this scale uses."""
        return None if self.num_used is None else self.codebook_size - self.num_used


class CodeCounts:
    """Counts of codes per scale: `counts` int64 [num_scales, codebook_size], or `is_used`."""

    def __init__(self, codebook_size: int) -> None:
        if not isinstance(codebook_size, int) or codebook_size < 1:
            raise ValueError(f"codebook_size ({codebook_size!r}) must be at least 1")
        self.codebook_size = codebook_size
        self.tokens = np.zeros(0, dtype=np.int64)
        self.counts: np.ndarray | None = None
        self.is_used: np.ndarray | None = None
        if codebook_size <= LARGEST_COUNTED:
            self.counts = np.zeros((0, codebook_size), dtype=np.int64)
        elif codebook_size <= LARGEST_MAPPED:
            self.is_used = np.zeros(codebook_size, dtype=bool)

    def add(self, codes: np.ndarray, scale_of_token: np.ndarray | None = None) -> None:
        """Adds the codes of a sample [l], and the scale of each [l] (default: one scale).

        ValueError when a code lies outside [0, codebook_size).
        """
        if scale_of_token is None:
            scale_of_token = np.zeros(len(codes), dtype=np.int64)
        if len(scale_of_token) != len(codes):
            raise ValueError(f"{len(codes)} codes, but {len(scale_of_token)} have a scale")
        if not len(codes):
            return
        if not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(f"a code lies outside [0, {self.codebook_size})")
        per_scale = np.bincount(scale_of_token)
        self._reserve(len(per_scale))
        self.tokens[: len(per_scale)] += per_scale
        if self.counts is not None:
            places = scale_of_token * self.codebook_size + codes
            np.add.at(self.counts.reshape(-1), places, 1)
        elif self.is_used is not None:
            self.is_used[codes] = True

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Adds what `to_json` gave; ValueError when it is of another codebook, or damaged."""
        size = record["codebook_size"]
        if size != self.codebook_size:
            sizes = f"{self.codebook_size} and {size}"
            raise ValueError(f"codes of codebooks of {sizes} entries do not add up")
        rows = record["counts"] if self.counts is not None else record["tokens"]
        if not isinstance(rows, list):
            raise ValueError("counts must be a list with an entry per scale")
        self._reserve(len(rows))
        if self.counts is None:
            self.tokens[: len(rows)] += np.asarray(rows, dtype=np.int64)
        else:
            for scale, row in enumerate(rows):
                self.tokens[scale] += _add_row(self.counts[scale], row)
        if self.is_used is not None:
            packed = _array(record["used"], np.dtype("<u1"))
            if len(packed) != (size + 7) // 8:
                raise ValueError(f"a bitmap of {len(packed)} bytes for {size} codes")
            self.is_used |= np.unpackbits(packed, count=size, bitorder="little").view(bool)

    def to_json(self) -> dict[str, Any]:
        """The record: `codebook_size` and `counts`, or `tokens` per scale and perhaps `used`."""
        if self.counts is not None:
            rows = [_row(counts) for counts in self.counts]
            return {"codebook_size": self.codebook_size, "counts": rows}
        record: dict[str, Any] = {
            "codebook_size": self.codebook_size,
            "tokens": self.tokens.tolist(),
        }
        if self.is_used is not None:
            record["used"] = _text(np.packbits(self.is_used, bitorder="little"))
        return record

    def usage(self, bucket: str) -> list[ScaleUsage]:
        """Use of the codebook, scale by scale."""
        if self.counts is not None:
            return [usage_of(bucket, scale, row) for scale, row in enumerate(self.counts)]
        return [
            ScaleUsage(bucket, scale, tokens, self.codebook_size, None, None)
            for scale, tokens in enumerate(self.tokens.tolist())
        ]

    def _reserve(self, num_scales: int) -> None:
        if num_scales * min(self.codebook_size, LARGEST_COUNTED) > MAX_COUNTS:
            raise ValueError(f"{num_scales} scales of {self.codebook_size} codes are too many")
        missing = num_scales - len(self.tokens)
        if missing > 0:
            self.tokens = np.pad(self.tokens, (0, missing))
            if self.counts is not None:
                self.counts = np.pad(self.counts, ((0, missing), (0, 0)))


def usage_of(bucket: str, scale: int, counts: np.ndarray) -> ScaleUsage:
    """Use of a codebook whose codes occur so often: counts int64 [codebook_size]."""
    total = int(counts.sum())
    used = counts[counts > 0]
    shares = used / max(total, 1)
    entropy = abs(float(-(shares * np.log2(shares)).sum())) if total else 0.0
    return ScaleUsage(bucket, scale, total, len(counts), len(used), entropy)


def _row(counts: np.ndarray) -> str:
    """One scale as text, whichever of both forms is shorter."""
    largest = int(counts.max(initial=0))
    name = next(name for name, width in _WIDTHS.items() if largest <= np.iinfo(width).max)
    width = _WIDTHS[name]
    places = np.flatnonzero(counts)
    if len(places) * (2 + width.itemsize) < len(counts) * width.itemsize:
        return f"sparse {name} {_text(places.astype('<u2'))} {_text(counts[places].astype(width))}"
    return f"dense {name} {_text(counts.astype(width))}"


def _add_row(counts: np.ndarray, text: str) -> int:
    """Adds the counts that `_row` wrote to [codebook_size], in place; returns their sum."""
    form, _, rest = text.partition(" ")
    name, _, rest = rest.partition(" ")
    if form not in ("dense", "sparse") or name not in _WIDTHS:
        raise ValueError(f"unknown form of counts: {text[:20]!r}")
    if form == "dense":
        row = _array(rest, _WIDTHS[name])
        if len(row) != len(counts):
            raise ValueError(f"{len(row)} counts of a codebook of {len(counts)} entries")
        counts += row.astype(np.int64, copy=False)
        return int(row.sum())
    first, _, second = rest.partition(" ")
    places, row = _array(first, np.dtype("<u2")).astype(np.int64), _array(second, _WIDTHS[name])
    is_ascending = bool((places[1:] > places[:-1]).all())
    if len(places) != len(row) or not is_ascending or places.max(initial=0) >= len(counts):
        raise ValueError("codes and counts do not belong together")
    counts[places] += row.astype(np.int64)
    return int(row.sum())


def _text(array: np.ndarray) -> str:
    return binascii.b2a_base64(array.tobytes(), newline=False).decode("ascii")


def _array(text: str, dtype: np.dtype) -> np.ndarray:
    data = binascii.a2b_base64(text, strict_mode=True) if text else b""
    return np.frombuffer(data, dtype=dtype)
