"""Batches from shards: the dataset that the settings name, and the loader of its batches.

A step's batch is a pure function of the step, so the state of the data is the step alone: resume is
exact, and any number of ranks sees the same global batches (see `pipeline.shards.loader`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.shards import (
    Bucket,
    BucketPlan,
    Dataset,
    Loader,
    LoaderConfig,
    Source,
    open_dataset,
)
from tokenizer.settings import UserError
from training.config import DataConfig
from training.loop_config import TrainerConfig
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
    """The batches of one rank.

    UserError when a batch has fewer clips than there are ranks, or a bucket fewer than its batch;
    then with a table of all buckets.
    """
    settings = LoaderConfig(
        global_batch_size=trainer.global_batch_size,
        batch_sizes=config.batch_sizes,
        bucket_weights=config.bucket_weights,
        seed=trainer.seed,
        order=config.order,
        window_shards=config.window_shards,
        tail=config.tail,
        views=config.views,
        damaged=config.damaged,
        threads=config.threads,
        depth=2 * trainer.batches_per_step,
    )
    for name, sizes in (
        ("batch_sizes", config.batch_sizes),
        ("bucket_weights", config.bucket_weights),
    ):
        _check_names(name, sizes, sources)
    loader = Loader(sources, settings, rank, world_size)
    plans = loader.plan()
    small = [each for each in plans if each.num_samples < each.batch_size]
    if small:
        first = small[0]
        raise UserError(
            f"bucket {first.bucket.name} has {first.num_samples} clips, too few for a batch of "
            f"{first.batch_size}: give it a smaller one with data.batch_sizes, or name the buckets "
            f"to train on with data.buckets\n{bucket_table(plans)}"
        )
    if trainer.micro_batch_size is not None:
        check_micro_batches(plans, trainer.micro_batch_size, world_size)
    return loader


def bucket_table(plans: Sequence[BucketPlan]) -> str:
    """Each bucket with its clips, its batch and its share of batches and of codes."""
    rows = [("bucket", "clips", "batch", "batches an epoch", "of batches", "of codes")]
    codes = [each.share * each.batch_size * _num_codes(each.bucket) for each in plans]
    for each, own in zip(plans, codes):
        epoch = each.num_samples / each.batch_size
        rows.append(
            (
                each.bucket.name,
                f"{each.num_samples:,}",
                f"{each.batch_size:,}",
                f"{epoch:.1f}" if epoch >= 1 else f"{epoch:.1f}  <- too few clips",
                f"{each.share:.0%}",
                f"{own / sum(codes):.0%}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _num_codes(bucket: Bucket) -> int:
    if bucket.schedule is not None:
        return bucket.schedule.num_tokens
    return bucket.num_frames * bucket.height * bucket.width


def _check_names(setting: str, given: Mapping[str, float], sources: Sequence[Source]) -> None:
    known = {name: None for source in sources for name in source.samples}
    for name in given:
        if name not in known:
            raise UserError(
                f"data.{setting}: {name} is not trained on; data.buckets are {', '.join(known)}"
            )


def check_micro_batches(plans: Sequence[BucketPlan], most: int, world_size: int) -> None:
    """UserError when a rank would have fewer clips than another one has micro-batches."""
    for each in plans:
        largest, smallest = -(-each.batch_size // world_size), each.batch_size // world_size
        if -(-largest // most) > smallest:
            raise UserError(
                f"trainer.micro_batch_size ({most}): the batch of {each.bucket.name} "
                f"({each.batch_size}) leaves some of {world_size} ranks without a clip in the last "
                f"micro-batch; take a batch that {world_size} divides"
            )


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
