"""Clips of pixel shards to look at a tokenizer with: which there are, which are taken, in batches.

    chosen = choose_clips(dataset, tokenizer, split="val", max_clips=64)
    for samples, places in chosen.values():
        for frames, at in batches(samples, places, 16):        # uint8 [b, t, h, w, 3]
            ...

Those taken are spread evenly over the split, so they are the same wherever and whenever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from pipeline.shards import DamagedSample, Dataset, Samples
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError


class Chosen(NamedTuple):
    """The samples of a shape and the places of those that are taken."""

    samples: Samples
    places: Int[np.ndarray, " n"]


def find_pixels(
    data: Path,
    prepare_pixels: Callable[[str], Path] | None,
    is_build: Callable[[Path], bool],
) -> Path:
    """The pixel shards of a build, which are made if need be, or those that a folder has or is."""
    if prepare_pixels is not None and is_build(data):
        return Path(prepare_pixels(str(data)))
    return data / "pixels" if (data / "pixels" / "shards.json").is_file() else data


def choose_clips(
    dataset: Dataset, tokenizer: Tokenizer, split: str, max_clips: int | None
) -> dict[str, Chosen]:
    """At most `max_clips` of each shape, shapes with most frames first; split `all`: every one.

    UserError when these are no pixel shards, have no clips in the split, or shapes that do not fit
    the tokenizer.
    """
    if dataset.primary.kind != "frames":
        raise UserError(
            f"{dataset.root}: holds {dataset.primary.kind}, a tokenizer is judged by pixels; "
            "give the folder of a build, or its folder `pixels`"
        )
    wanted = None if split == "all" else split
    names = {each.bucket for each in dataset.shards if wanted is None or each.split == wanted}
    if not names:
        known = ", ".join(sorted({str(each.split) for each in dataset.shards}))
        raise UserError(f"{dataset.root}: no clips in split {split!r}; there are {known}, or all")
    chosen = {}
    for name in sorted(names, key=lambda name: -dataset.buckets[name].num_frames):
        bucket = dataset.buckets[name]
        tokenizer.schedule_for(bucket.num_frames, bucket.height, bucket.width)
        samples = dataset.samples(split=wanted, bucket=name)
        chosen[name] = Chosen(samples, spread(len(samples), max_clips))
    return chosen


def spread(population: int, most: int | None) -> Int[np.ndarray, " n"]:
    """At most `most` places below `population`, evenly spread (None: all)."""
    count = min(population, most or population)
    return np.arange(count) * population // max(count, 1)


def batches(
    samples: Samples,
    places: Int[np.ndarray, " n"],
    batch_size: int,
    skip_damaged: bool = False,
) -> Iterator[tuple[UInt8[np.ndarray, "b t h w 3"], Int[np.ndarray, " b"]]]:
    """The clips at these places and where they are; damaged ones raise, or are left out."""
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        try:
            frames = samples.gather(part)
        except DamagedSample:
            if not skip_damaged:
                raise
            if len(part) > 1:
                yield from batches(samples, part, 1, skip_damaged)
            continue
        yield frames, part


def frames_at(
    samples: Samples, places: Int[np.ndarray, " n"], skip_damaged: bool
) -> UInt8[np.ndarray, "b t h w 3"]:
    """The clips at these places; damaged ones raise, or are left out as long as one is sound."""
    found = [frames for frames, _ in batches(samples, places, len(places), skip_damaged)]
    return np.concatenate(found) if found else samples.gather(places)
