"""Batches from shards: the dataset that the settings name, and the loader of its batches.

A step's batch is a pure function of the step, so the state of the data is the step alone: resume is
exact, and any number of ranks sees the same global batches (see `pipeline.shards.loader`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.shards import Bucket, Dataset, Loader, LoaderConfig, Source, open_dataset
from tokenizer.settings import UserError
from training.config import DataConfig, TrainerConfig
from training.vocabulary import FIELDS


def open_sources(config: DataConfig) -> tuple[Dataset, list[Source]]:
    """The dataset of `path`, and its samples by bucket with those of the mixture.

    UserError when the settings do not fit them, or they are not of one tokenizer and shape.
    """
    if config.path is None:
        raise UserError("data.path is required: the dataset folder that `tessera build` made")
    dataset = open_dataset(
        config.path, where=config.where, captions=config.captions, token_set=config.token_set
    )
    sources = [Source(samples=dataset.by_bucket(config.split, config.buckets))]
    for path, weight in config.mixture.items():
        other = open_dataset(path, where=config.where, token_set=config.token_set)
        _check_alike(dataset, other, sources[0])
        names = [each for each in sources[0].samples if each in other.buckets]
        sources.append(Source(samples=other.by_bucket(config.split, names), weight=weight))
    return dataset, sources


def open_loader(
    sources: Sequence[Source],
    config: DataConfig,
    trainer: TrainerConfig,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """The batches of one rank; UserError when there are fewer clips in a batch than ranks."""
    if trainer.global_batch_size < world_size:
        raise UserError(
            f"trainer.global_batch_size ({trainer.global_batch_size}) must be at least one clip "
            f"for each of {world_size} ranks"
        )
    settings = LoaderConfig(
        global_batch_size=trainer.global_batch_size,
        seed=trainer.seed,
        order=config.order,
        window_shards=config.window_shards,
        tail=config.tail,
        views=config.views,
        damaged=config.damaged,
        threads=config.threads,
    )
    return Loader(sources, settings, rank, world_size)


def prompts_in(sources: Sequence[Source], kind: str, skip_damaged: bool) -> Iterator[str | None]:
    """The prompt of each clip, as a condition of this kind needs it; nothing for kind none."""
    for source in sources if kind in FIELDS else ():
        for members in source.samples.values():
            for each in members.each_metadata(skip_damaged):
                yield each[FIELDS[kind]]


def data_order(loader: Loader) -> str:
    """What decides which clips a step sees: datasets, weights, seed, batch size, order."""
    state = loader.state(0)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _check_alike(dataset: Dataset, other: Dataset, source: Source) -> None:
    mine, theirs = dataset.primary, other.primary
    if (mine.kind, mine.dtype, mine.tokenizer) != (theirs.kind, theirs.dtype, theirs.tokenizer):
        raise UserError(
            f"data.mixture: {other.root} holds {theirs.kind} of tokenizer "
            f"{str(theirs.tokenizer)[:12]}, {dataset.root} {mine.kind} of "
            f"{str(mine.tokenizer)[:12]}; build both with one tokenizer"
        )
    shared = [name for name in source.samples if name in other.buckets]
    if not shared or any(
        _primary_only(dataset.buckets[name]) != _primary_only(other.buckets[name])
        for name in shared
    ):
        raise UserError(
            f"data.mixture: {other.root} has not the buckets of {dataset.root} that are trained "
            f"on ({', '.join(source.samples)})"
        )


def _primary_only(bucket: Bucket) -> Bucket:
    return replace(bucket, schedules={})
