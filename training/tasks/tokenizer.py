"""Training a tokenizer: its own losses, on clips of pixel shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.shards import Batch, Samples
from pipeline.shards.order import shuffled
from tokenizer.folder import save_tokenizer
from tokenizer.model import Tokenizer, signed
from tokenizer.settings import UserError, save_settings, to_dict
from training.config import TokenizerRun
from training.data import data_order, open_loader, open_sources
from training.draws import torch_generator
from training.tasks.task import Losses

_FIRST_CLIPS = 192  # that the tokenizer is initialised from


class TokenizerTask:
    """A tokenizer and the clips that it learns to reconstruct."""

    unit = "clips"

    def __init__(
        self, config: TokenizerRun, device: str, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config = config
        self.dataset, sources = open_sources(config.data)
        if self.dataset.primary.kind != "frames":
            raise UserError(
                f"{self.dataset.root}: holds {self.dataset.primary.kind}, a tokenizer learns from "
                "pixel shards; give the folder of a build, or its folder `pixels`"
            )
        for each in sources[0].samples.values():
            bucket = each.bucket
            config.tokenizer.schedule_for(bucket.num_frames, bucket.height, bucket.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.tokenizer = Tokenizer(config.tokenizer).to(device)
        self.module: nn.Module = self.tokenizer
        self._device = torch.device(device)
        self._begin(sources[0].samples)
        self._rank = rank
        self.loader = open_loader(sources, config.data, config.trainer, rank, world_size)
        self.identity: dict[str, Any] = {
            "task": "tokenizer",
            "dataset": self.dataset.fingerprint,
            "model": to_dict(config.tokenizer),
            "seed": config.trainer.seed,
            "global_batch_size": config.trainer.global_batch_size,
            "data_order": data_order(self.loader),
        }

    def _begin(self, samples: Mapping[str, Samples]) -> None:
        """Initialises from some clips of the longest bucket, the same on every rank."""
        clips = max(samples.values(), key=lambda each: each.bucket.num_frames)
        count = min(_FIRST_CLIPS, len(clips))
        seed = self.config.trainer.seed
        first = clips.gather(shuffled(range(count), len(clips), seed, epoch=0))
        video = signed(torch.from_numpy(first).to(self._device))
        self.tokenizer.begin(video, torch_generator(seed, "begin", 0, 0))

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 4

    def losses(self, batch: Batch, step: int) -> Losses:
        trainer = self.config.trainer
        video = signed(torch.from_numpy(batch.arrays).to(self._device))
        generator = torch_generator(trainer.seed, "tokenizer", step, self._rank)
        output = self.tokenizer.training_step(video, step / trainer.num_steps, generator)
        count = len(video)
        sums = {name: value.detach() * count for name, value in output.terms.items()}
        return Losses(output.loss * count, count, sums)

    def prepare(self, run: Path) -> None:
        save_settings(self.config, run / "config.yaml")

    def finish(self, run: Path) -> None:
        """The tokenizer where a build looks for it, frozen from now on."""
        if self.config.result is not None:
            save_tokenizer(self.tokenizer, Path(self.config.result))
