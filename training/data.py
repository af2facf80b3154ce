"""Batches from shards: the dataset that the settings name, and the loader of its batches.

A step's batch is a pure function of the step, so the state of the data is the step alone: resume is
exact, and any number of ranks sees the same global batches (see `pipeline.shards.loader`).
"""

from __future__ import annotations

from pipeline.shards import Dataset, Loader, LoaderConfig, Samples, open_dataset
from tokenizer.settings import UserError
from training.config import DataConfig, TrainerConfig


def open_samples(config: DataConfig) -> tuple[Dataset, dict[str, Samples]]:
    """The dataset and its samples by bucket; UserError when the settings do not fit it."""
    if config.path is None:
        raise UserError("data.path is required: the dataset folder that `tessera build` made")
    dataset = open_dataset(config.path, where=config.where, captions=config.captions)
    return dataset, dataset.by_bucket(config.split, config.buckets)


def open_loader(
    samples: dict[str, Samples],
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
    return Loader(samples, settings, rank, world_size)


def data_order(config: DataConfig) -> list[str | int]:
    """The settings that decide which clips a step sees, beside the dataset, seed and batch size."""
    window = [config.window_shards] if config.order == "window" else []
    return [config.order, *window, config.tail, config.views]
