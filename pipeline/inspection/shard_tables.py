"""Tables of a shard: how `tessera inspect` shows its samples, and the codes of one by scale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.inspection.members import InspectedShard, Sample
from pipeline.inspection.terminal import print_line, print_table
from pipeline.quantities import size
from pipeline.shards.format import SHARDS_FILE, ShardError, TokenSet, parse_declaration
from pipeline.shards.packing import unpack_codes
from tokenizer.scales import Schedule

MAX_CODES_SHOWN = 12


def print_shard(shard: InspectedShard, limit: int) -> None:
    """The samples of a shard, the first `limit` of them (0: all)."""
    extensions = sorted({each.extension for row in shard.members.values() for each in row})
    print_line(
        f"{shard.path}: {len(shard.keys):,} samples, {size(shard.size_bytes)}, "
        f"members {', '.join(extensions)}"
    )
    shown = shard.keys if limit <= 0 else shard.keys[:limit]
    rows = []
    for key in shown:
        sample = shard.read(key)
        arrays = ", ".join(
            f"{name} {array.dtype}{list(array.shape)}" for name, array in sample.arrays.items()
        )
        num_bytes = sum(member.size_bytes for member in shard.members[key])
        values = [sample.metadata.get(name) for name in ("bucket", "label", "caption")]
        rows.append([key, f"{num_bytes:,}", arrays, *("" if v is None else str(v) for v in values)])
    print_table(["key", "#bytes", "arrays", "bucket", "label", "caption"], rows)
    if len(shown) < len(shard.keys):
        rest = len(shard.keys) - len(shown)
        print_line(f"and {rest:,} more (--limit 0 for all)")


def print_sample(shard: InspectedShard, key: str) -> None:
    """One sample: its JSON, its arrays, its codes scale by scale."""
    sample = shard.read(key)
    print_line(f"{shard.path}: {key}")
    text = json.dumps(sample.metadata, indent=2, sort_keys=True, ensure_ascii=False)
    for line in text.splitlines():
        print_line(line)
    rows = [
        [
            name,
            str(array.dtype),
            "x".join(map(str, array.shape)),
            f"{array.nbytes:,}",
            *([f"{array.min()}", f"{array.max()}"] if array.size else ["", ""]),
        ]
        for name, array in sample.arrays.items()
    ]
    print_table(["array", "dtype", "shape", "#bytes", "#min", "#max"], rows)
    _print_scales(shard.path, sample)


@dataclass(frozen=True)
class _Layout:
    """How the dataset around a shard says that a token set of a bucket lies."""

    token_set: TokenSet
    schedule: Schedule


def _print_scales(path: Path, sample: Sample) -> None:
    """The codes of every token set whose schedule is known."""
    for layout in _layouts(path, str(sample.metadata.get("bucket"))):
        array = sample.arrays.get(layout.token_set.member)
        if array is None or array.ndim != 1:
            continue
        rows = []
        parts = layout.schedule.split(_codes(path, sample.key, layout, array))
        for index, (scale, part) in enumerate(zip(layout.schedule.scales, parts)):
            flat = part.reshape(-1)
            first = " ".join(str(code) for code in flat[:MAX_CODES_SHOWN])
            rows.append(
                [
                    str(index),
                    f"{scale.t0} to {scale.t1}",
                    "x".join(map(str, scale.shape)),
                    str(len(np.unique(flat))),
                    first + (" ..." if len(flat) > MAX_CODES_SHOWN else ""),
                ]
            )
        name = layout.token_set.name
        print_table([f"#scale of {name}", "latent frames", "t x h x w", "#distinct", "codes"], rows)


def _codes(path: Path, key: str, layout: _Layout, array: np.ndarray) -> np.ndarray:
    """The codes [num_tokens], unpacked; ShardError when they are not as many."""
    num_tokens, bits = layout.schedule.num_tokens, layout.token_set.bits_per_code
    if layout.token_set.dtype == "bits" and bits is not None:
        try:
            return unpack_codes(array, bits, num_tokens)
        except ValueError as error:
            raise ShardError(f"{path}: {key}: {error}") from None
    if len(array) != num_tokens:
        raise ShardError(f"{path}: {key} has {len(array)} codes; its schedule has {num_tokens}")
    return array


def _layouts(path: Path, bucket_name: str) -> Iterator[_Layout]:
    """Of the sets of codes that the dataset around this shard declares; none for a lone shard."""
    declared = path.resolve().parent.parent / SHARDS_FILE
    if not declared.is_file():
        return
    text = declared.read_text(encoding="utf-8", errors="replace")
    _, token_sets, buckets, shards = parse_declaration(text, str(declared))
    for entry in shards:
        if Path(entry.path).name == path.name:
            bucket_name = entry.bucket
    for bucket in buckets:
        if bucket.name != bucket_name:
            continue
        for place, token_set in enumerate(token_sets):
            further = bucket.schedules.get(token_set.name)
            schedule = bucket.schedule if place == 0 else further
            if token_set.kind == "codes" and schedule is not None:
                yield _Layout(token_set, schedule)
