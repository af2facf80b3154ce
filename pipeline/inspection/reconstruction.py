"""Reconstructions: samples of a dataset decoded from their codes, beside what their sources show.

    for each in compare("runs/demo/data", num_samples=16, seed=0):
        each.original, each.decoded      # uint8 [t, h, w, 3]; `original` None when it is gone
        each.psnr                        # of the clip in dB

The codes are read from the shards and decoded by the dataset's own tokenizer (or another); the
sources are decoded anew with the build's own requests (`originals`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inspection.originals import Original, Wanted, clip_request, read_originals
from pipeline.shards.reader import Dataset, open_dataset
from pipeline.shards.samples import Samples
from tokenizer.settings import UserError

BATCH_SIZE = 8
BEST_PSNR = 100.0
"""What equal pictures count as: their PSNR would be infinite."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One sample: its metadata, its pictures, and how near they are."""

    metadata: Mapping[str, Any]
    bucket: str
    decoded: np.ndarray
    original: np.ndarray | None
    reason: str
    """Why there is no original, or ""."""
    psnr: float | None
    """The mean over its frames, in dB, each at most BEST_PSNR."""
    flat_psnr: float | None
    """What one flat colour instead of the clip would have."""
    agreement: float | None
    """Share of the stored codes that encoding the original gives again; None for pixels."""


def compare(
    root: str | Path,
    *,
    num_samples: int,
    seed: int = 0,
    split: str | None = None,
    tokenizer: str | Path | None = None,
    seconds: float = 600.0,
    token_set: str | None = None,
) -> list[Comparison]:
    """Draws samples at random, without repetition, in the order of the shards.

    `tokenizer` is the folder of the one that decodes (default: the dataset's own); it must have
    made the codes. Sources are decoded for at most `seconds`. `token_set` names what is shown
    (default: the primary one). UserError when there is no tokenizer or it is another.
    """
    dataset = open_dataset(root, token_set=token_set)
    coder = None
    if dataset.primary.kind == "codes":
        coder = _load(dataset, tokenizer)
    elif dataset.primary.kind != "frames":
        raise UserError(f"{root}: {dataset.primary.kind} cannot be shown, only codes and frames")
    drawn = list(_draw(dataset, num_samples, seed, split))
    rows = [row for samples, places in drawn for row in samples.metadata(places)]
    wanted = [Wanted(str(row["source_id"]), clip_request(row)) for row in rows]
    originals = read_originals(root, wanted, seconds=seconds)
    result, start = [], 0
    for samples, places in drawn:
        for first in range(0, len(places), BATCH_SIZE):
            chosen = places[first : first + BATCH_SIZE]
            span = slice(start, start + len(chosen))
            result += _compared(samples, chosen, rows[span], originals[span], coder)
            start += len(chosen)
    return result


def fingerprint_in(directory: str | Path) -> str:
    """The fingerprint that a tokenizer's folder declares; UserError when there is none."""
    from tokenizer.folder import read_description

    return str(read_description(Path(directory))["fingerprint"])


def _load(dataset: Dataset, directory: str | Path | None) -> Any:
    """The tokenizer, after its fingerprint was compared with the dataset's."""
    from tokenizer.folder import load_tokenizer

    folder = dataset.tokenizer_dir if directory is None else Path(directory)
    if folder is None:
        raise UserError(f"{dataset.root}: has no tokenizer in it; name one with --tokenizer")
    found, declared = fingerprint_in(folder), dataset.primary.tokenizer
    if declared is not None and found != declared:
        raise UserError(
            f"{folder}: another tokenizer ({found[:16]}) than made the codes of {dataset.root} "
            f"({declared[:16]})"
        )
    return load_tokenizer(folder)


def _draw(
    dataset: Dataset, num_samples: int, seed: int, split: str | None
) -> Iterator[tuple[Samples, np.ndarray]]:
    """(samples of a bucket, the numbers drawn from them)."""
    shards = [each for each in dataset.shards if split is None or each.split == split]
    if not shards:
        raise UserError(f"{dataset.root}: no samples in split {split!r}")
    buckets = [dataset.samples(split, name) for name in sorted({each.bucket for each in shards})]
    ends = np.cumsum([len(samples) for samples in buckets])
    random = np.random.default_rng(seed)
    count = min(num_samples, int(ends[-1]))
    chosen = np.sort(random.choice(int(ends[-1]), count, replace=False))
    for samples, end in zip(buckets, ends.tolist()):
        start = end - len(samples)
        places = chosen[(chosen >= start) & (chosen < end)] - start
        if len(places):
            yield samples, places


def _compared(
    samples: Samples,
    places: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    originals: Sequence[Original],
    coder: Any,
) -> list[Comparison]:
    import torch

    from tokenizer.metrics import mean_color, psnr

    schedule = samples.bucket.schedule
    array = samples.gather(places)
    codes = None
    if coder is None:
        decoded = array
    else:
        codes = torch.from_numpy(array.astype(np.int64))
        decoded = coder.decode(codes, schedule).numpy()
    result = []
    for index, (row, original) in enumerate(zip(rows, originals)):
        near = flat = agreement = None
        if original.frames is not None:
            shown = torch.from_numpy(original.frames.copy())[None]
            near = float(psnr(torch.from_numpy(decoded[index])[None], shown))
            flat = float(psnr(mean_color(shown), shown))
            if codes is not None:
                again = coder.encode(shown)[0]
                agreement = float((again == codes[index]).double().mean())
        result.append(
            Comparison(
                metadata=row,
                bucket=samples.bucket.name,
                decoded=decoded[index],
                original=original.frames,
                reason=original.reason,
                psnr=near,
                flat_psnr=flat,
                agreement=agreement,
            )
        )
    return result
