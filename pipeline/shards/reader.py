"""Opens a dataset of shards: what is in it, and its samples by split and bucket.

    dataset = open_dataset("runs/demo/data")
    samples = dataset.samples(split="train")
    codes = samples.gather([5, 17, 2])      # uint16 [3, num_tokens]
    captions = [each["caption"] for each in samples.metadata([5, 17, 2])]

Opening reads `shards.json`; a shard and its part of the index are read when a sample in it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.shards.companions import join
from pipeline.shards.folder import LocalFolder
from pipeline.shards.format import (
    SHARDS_FILE,
    SUCCESS_FILE,
    Bucket,
    ShardEntry,
    ShardError,
    TokenSet,
    canonical_json,
    parse_declaration,
    tokenizer_folders,
)
from pipeline.shards.overrides import Captions, read_captions
from pipeline.shards.remote import RemoteFolder, is_remote
from pipeline.shards.removal import REMOVED_FOLDER, read_removed
from pipeline.shards.samples import Samples
from pipeline.shards.stock import StockFolder, find_tars
from pipeline.shards.where import matching_rows
from tokenizer.settings import UserError

MANIFEST_FILE = "manifest.parquet"


def open_dataset(
    location: str | Path | Sequence[str | Path],
    *,
    where: str | None = None,
    captions: str | Path | None = None,
    companions: Sequence[str | Path] = (),
    token_set: str | None = None,
) -> Dataset:
    """The finished dataset at `location`; UserError if there is none, ShardError if damaged.

    `location` is its folder or, in an object store, its URL (see `remote`); or stock WebDataset
    tars: a folder of them, a pattern, or a list (see `stock`).
    `where` keeps the samples that match an expression over the columns of its manifest (see
    `where`), `captions` names a parquet of other captions (see `overrides`), `companions` are
    datasets with further token sets of the same samples. All of them change the fingerprint, and so
    do samples that were removed. `token_set` names the one that is read as the primary one; the
    samples, their order in training and the fingerprint are the same for each.
    """
    declared = _declared(location)
    if token_set is not None:
        declared = _led_by(declared, token_set)
    folder, fingerprint = declared.folder, declared.fingerprint
    removed = read_removed(folder.names(REMOVED_FOLDER), folder.read, str(folder))
    matching = texts = None
    if where is not None or captions is not None:
        manifest = folder.local(MANIFEST_FILE)
        if where is not None:
            if manifest is None:
                raise UserError(f"{declared.root}: has no {MANIFEST_FILE}, which `where` reads")
            matching = matching_rows(manifest, where)
        if captions is not None:
            texts = read_captions(Path(captions), manifest)
    others = tuple(open_dataset(each) for each in companions)
    seen = [
        removed.names,
        where,
        texts.fingerprint if texts else None,
        [each.fingerprint for each in others],
    ]
    if any(seen):
        fingerprint = hashlib.sha256(canonical_json([fingerprint, *seen])).hexdigest()
    return replace(
        declared,
        fingerprint=fingerprint,
        removed=removed.rows,
        matching=matching,
        captions=texts,
        companions=others,
    )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A finished dataset; `token_sets` lists the primary set first.

    `tokenizers` says, by set, in which folder its tokenizer is if it is there. `removed` and
    `matching` are rows by shard path: those left out, and (unless None) those kept.
    """

    root: str
    fingerprint: str
    token_sets: dict[str, TokenSet]
    buckets: dict[str, Bucket]
    shards: list[ShardEntry]
    folder: LocalFolder | RemoteFolder | StockFolder = field(repr=False)
    removed: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)
    matching: Mapping[str, np.ndarray] | None = field(repr=False, default=None)
    captions: Captions | None = field(repr=False, default=None)
    companions: tuple[Dataset, ...] = ()
    tokenizers: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder of the tokenizer that made the primary codes; None when there is none."""
        return self.folder.local(self.tokenizers[self.primary.name])

    @property
    def primary(self) -> TokenSet:
        return next(iter(self.token_sets.values()))

    def samples(
        self, split: str | None = None, bucket: str | None = None, *, check: bool = True
    ) -> Samples:
        """The samples of a split (None: all) in one bucket.

        `bucket` may be None when the split has exactly one, or when one has more frames than the
        others: then that one is meant. `check` False reads without comparing crc32.
        """
        chosen = self._shards(split, bucket)
        name = chosen[0].bucket
        identity = canonical_json([self.fingerprint, split, name])
        shards = [self.folder.shard(each) for each in chosen]
        members = shards[0].sidecar.members
        samples = Samples(
            self.buckets[name],
            {key: each for key, each in self.token_sets.items() if each.member in members},
            shards,
            rows=self._rows(chosen),
            check=check,
            captions=self.captions,
            fingerprint=hashlib.sha256(identity).hexdigest(),
        )
        if not len(samples):
            raise UserError(f"{self.root}: no sample of split {split!r} in bucket {name} is left")
        for other in self.companions:
            partner = join(samples, other.partners(name), str(other.root))
            for token_set in other.token_sets:
                samples.add_companion(token_set, partner)
        return samples

    def partners(self, bucket: str) -> Samples:
        """All samples in a bucket, whatever their split, as a companion gives them."""
        if all(each.bucket != bucket for each in self.shards):
            raise UserError(f"{self.root}: no samples in bucket {bucket}, as a companion must have")
        return self.samples(None, bucket)

    def by_bucket(
        self, split: str | None = None, buckets: Sequence[str] = (), *, check: bool = True
    ) -> dict[str, Samples]:
        """The samples of a split in each of `buckets` (none named: as `samples` chooses)."""
        found = [self.samples(split, name, check=check) for name in buckets or (None,)]
        return {each.bucket.name: each for each in found}

    def _shards(self, split: str | None, bucket: str | None) -> list[ShardEntry]:
        shards = [each for each in self.shards if split is None or each.split == split]
        if bucket is None:
            names = {each.bucket for each in shards}
            if not names:
                raise UserError(f"{self.root}: no samples in split {split!r}")
            most = max(self.buckets[name].num_frames for name in names)
            longest = sorted(name for name in names if self.buckets[name].num_frames == most)
            if len(longest) > 1:
                raise UserError(f"{self.root}: name a bucket: one of {', '.join(longest)}")
            bucket = longest[0]
        elif bucket not in self.buckets:
            known = ", ".join(self.buckets)
            raise UserError(f"{self.root}: no bucket {bucket!r}; there are {known}")
        chosen = [each for each in shards if each.bucket == bucket]
        if not chosen:
            raise UserError(f"{self.root}: split {split!r} has no samples in bucket {bucket}")
        return chosen

    def _rows(self, shards: Sequence[ShardEntry]) -> np.ndarray | None:
        """The numbers of the samples in these shards that are seen; None for all of them."""
        if not self.removed and self.matching is None:
            return None
        kept, start = [], 0
        none = np.empty(0, dtype=np.int64)
        for shard in shards:
            rows = np.arange(shard.num_samples)
            if self.matching is not None:
                rows = self.matching.get(shard.path, none)
            removed = self.removed.get(shard.path, none)
            if max([*rows[-1:], *removed[-1:]], default=0) >= shard.num_samples:
                raise ShardError(
                    f"{self.root}: manifest or tombstones name rows behind the "
                    f"{shard.num_samples} of {shard.path}"
                )
            kept.append(start + (np.setdiff1d(rows, removed) if removed.size else rows))
            start += shard.num_samples
        return np.concatenate(kept)


def _declared(location: str | Path | Sequence[str | Path]) -> Dataset:
    """The dataset as its files declare it: nothing removed, filtered or added."""
    folder: LocalFolder | RemoteFolder | StockFolder
    if is_remote(location):
        folder = RemoteFolder(str(location))
        if not folder.exists(SUCCESS_FILE):
            raise UserError(f"{folder}: no finished dataset there; `tessera build` it to its end")
        declaration = _parsed(folder)
    elif isinstance(location, (str, Path)) and (Path(location) / SHARDS_FILE).exists():
        folder = LocalFolder(Path(location))
        if not folder.exists(SUCCESS_FILE):
            raise UserError(f"{folder}: not a finished dataset; run `tessera build` to its end")
        declaration = _parsed(folder)
    else:
        tars = find_tars(location)
        if not tars:
            known = isinstance(location, (str, Path)) and Path(location).is_dir()
            problem = "not a finished dataset; run `tessera build` to its end first"
            raise UserError(f"{location}: {problem if known else 'no such dataset folder'}")
        folder = StockFolder(tars)
        declaration = (folder.fingerprint, folder.token_sets, folder.buckets, folder.shards)
    fingerprint, token_sets, buckets, shards = declaration
    return Dataset(
        root=str(location if isinstance(location, (str, Path)) else location[0]),
        fingerprint=fingerprint,
        token_sets={each.name: each for each in token_sets},
        buckets={each.name: each for each in buckets},
        shards=shards,
        folder=folder,
        tokenizers=tokenizer_folders([each.name for each in token_sets]),
    )


def _led_by(dataset: Dataset, name: str) -> Dataset:
    """The dataset with another of its token sets as the primary one."""
    sets = dataset.token_sets
    if name not in sets:
        known = ", ".join(sets)
        raise UserError(f"{dataset.root}: has no token set {name!r}; it has {known}")
    before = dataset.primary.name
    buckets = {}
    for bucket in dataset.buckets.values():
        schedules = {before: bucket.schedule, **bucket.schedules}
        buckets[bucket.name] = replace(
            bucket,
            schedule=schedules.pop(name, None),
            schedules={each: schedule for each, schedule in schedules.items() if schedule},
        )
    ordered = {name: sets[name]} | sets
    return replace(dataset, token_sets=ordered, buckets=buckets)


def _parsed(
    folder: LocalFolder | RemoteFolder,
) -> tuple[str, list[TokenSet], list[Bucket], list[ShardEntry]]:
    try:
        text = folder.read(SHARDS_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        raise ShardError(f"{folder}/{SHARDS_FILE}: missing") from None
    return parse_declaration(text, f"{folder}/{SHARDS_FILE}")
