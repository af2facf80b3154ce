"""Held-out clips for the loss of validation: the same ones each time, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.shards import Batch, Dataset, Loader, LoaderConfig
from tokenizer.settings import UserError
from training.config import DataConfig
from training.data import check_micro_batches
from training.loop_config import TrainerConfig


class HeldOut:
    """Whole batches of the first clips of `data.validation_split`, of each bucket."""

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        trainer: TrainerConfig,
        buckets: Sequence[str],
        rank: int,
        world_size: int,
    ) -> None:
        """UserError when clips are asked for and there are none, or fewer than ranks."""
        self._loaders: list[tuple[Loader, int]] = []
        if not trainer.validate_every:
            return
        split = data.validation_split
        known = sorted({each.bucket for each in dataset.shards if each.split == split})
        for name in (each for each in buckets if each in known):
            samples = dataset.samples(split, name)
            count = min(len(samples), trainer.validation_clips)
            size = min(count, data.batch_sizes.get(name, trainer.global_batch_size))
            if size < world_size:
                raise UserError(
                    f"trainer.validate_every: split {split!r} has {len(samples)} clips of {name}, "
                    f"fewer than the {world_size} ranks; turn it off, or name a larger split with "
                    "data.validation_split"
                )
            settings = LoaderConfig(
                global_batch_size=size, order="none", tail="drop", damaged=data.damaged, threads=0
            )
            loader = Loader({name: samples}, settings, rank, world_size)
            if trainer.micro_batch_size is not None:
                check_micro_batches(loader.plan(), trainer.micro_batch_size, world_size)
            self._loaders.append((loader, count // size))
        if not self._loaders:
            splits = ", ".join(sorted({str(each.split) for each in dataset.shards}))
            raise UserError(
                f"trainer.validate_every: {dataset.root} has no clips of {', '.join(buckets)} in "
                f"split {split!r} (its splits: {splits}); name another with data.validation_split, "
                "or turn it off"
            )

    def batches(self) -> Iterator[Batch]:
        """This rank's parts."""
        for loader, count in self._loaders:
            yield from (loader.batch(number) for number in range(count))
