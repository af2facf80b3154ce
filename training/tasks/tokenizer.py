"""Training a tokenizer: its own losses, on clips of pixel shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.shards import Batch, Samples
from pipeline.shards.order import shuffled
from tokenizer.beginning import begin
from tokenizer.config import TokenizerConfig
from tokenizer.folder import find_tokenizer, load_tokenizer, save_tokenizer
from tokenizer.latents import save_statistics
from tokenizer.learner import Learner, check_size
from tokenizer.model import Tokenizer, signed
from tokenizer.perceptual import Lpips, load_lpips
from tokenizer.settings import UserError, save_settings, to_dict
from training.config import TokenizerRun
from training.data import data_order, open_loader, open_sources
from training.draws import torch_generator
from training.evaluate_config import MEASURED_CLIPS
from training.held_out import HeldOut
from training.pixel_clips import Chosen, frames_at, spread
from training.reconstructions import preview_tokenizer
from training.tasks.task import Losses, Mean, Moment, Part, Preview
from training.tokenizer_latents import measure_on

_CHUNK_PIXELS = 1 << 23  # read together when a tokenizer begins: 100 MB as float32
_PREVIEW_CLIPS = 64  # of each bucket, whose codes are judged


class TokenizerTask:
    """A tokenizer, the clips that it learns to reconstruct, and the critics if there are any."""

    unit = "clips"
    has_result = True
    blocks: Sequence[nn.Module] = ()
    weight_dtype: torch.dtype | None = None

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
        self._samples = sources[0].samples
        self._skips = config.data.damaged == "skip"
        for each in self._samples.values():
            bucket = each.bucket
            config.tokenizer.schedule_for(bucket.num_frames, bucket.height, bucket.width)
            check_size(config.tokenizer.loss, bucket.height, bucket.width)
        self._device = torch.device(device)
        if config.trainer.micro_batch_size is not None:
            raise UserError(
                "trainer.micro_batch_size: a tokenizer's codebook follows each part that is passed "
                "through, so parts would change what it learns; lower trainer.global_batch_size"
            )
        lpips = _lpips(config, self._device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.tokenizer = Tokenizer(config.tokenizer)
            self.learner = Learner(self.tokenizer, lpips).to(device)
        self.module: nn.Module = self.learner
        renewed = self.tokenizer.quantizer.codebook.renewed
        self.parts = [Part("tokenizer", self.tokenizer, config.optimizer, _is_matrix, renewed)]
        critics = self.learner.discriminator
        if critics is not None:
            optimizer = config.discriminator_optimizer
            self.parts.append(Part("discriminator", critics, optimizer, _is_matrix))
        self.loader = open_loader(sources, config.data, config.trainer, rank, world_size)
        self._held_out = HeldOut(
            self.dataset, config.data, config.trainer, list(self._samples), rank, world_size
        )
        self.identity: dict[str, Any] = {
            "task": "tokenizer",
            "dataset": self.dataset.fingerprint,
            "model": to_dict(config.tokenizer),
            "lpips": [config.lpips.vgg_sha256, config.lpips.heads_sha256] if lpips else None,
            "reversed_share": config.reversed_share,
            "seed": config.trainer.seed,
            "global_batch_size": config.trainer.global_batch_size,
            "data_order": data_order(self.loader),
        }

    def begin(self) -> None:
        """From a trained tokenizer, or from some clips of the longest bucket."""
        settings = self.config.begin
        if settings.folder is not None:
            _copy(Path(settings.folder), self.tokenizer)
        elif settings.clips:
            longest = max(self._samples.values(), key=lambda each: each.bucket.num_frames)
            seed = self.config.trainer.seed
            clips = _Clips(longest, settings.clips, seed, self._device, self._skips)
            begin(self.tokenizer, clips, torch_generator(seed, "begin", 0, 0))

    def count(self, batch: Batch) -> int:
        return len(batch)

    def flops(self, batch: Batch) -> float:
        return 0.0

    def losses(self, batch: Batch, moment: Moment) -> Losses:
        trainer = self.config.trainer
        # Every rank draws as the first one does, for the global batch.
        generator = torch_generator(trainer.seed, "tokenizer", moment.position, 0)
        video = signed(torch.from_numpy(batch.arrays).to(self._device))
        if self.config.reversed_share and video.shape[2] > 1 and self.learner.training:
            drawn = torch.rand(batch.global_size, generator=generator)[batch.start : batch.stop]
            chosen = (drawn < self.config.reversed_share).to(self._device)
            video = torch.where(chosen[:, None, None, None, None], video.flip(2), video)
        is_half = trainer.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_half):
            output = self.learner(video, moment.progress, generator)
        count = len(video)
        sums = {name: Mean(value.detach() * count, count) for name, value in output.terms.items()}
        if len(self._samples) > 1:
            sums[f"loss/{batch.bucket.name}"] = Mean(output.loss.detach() * count, count)
        return Losses(output.loss * count, sums)

    def held_out(self) -> Iterator[Batch]:
        return self._held_out.batches()

    def preview(self, module: nn.Module, run: Path, step: int) -> Preview:
        """Reconstructions and the health of the codes, of held-out clips where there are some."""
        assert isinstance(module, Learner)
        return preview_tokenizer(
            module.tokenizer, {name: self._shown(name) for name in self._samples}
        )

    def prepare(self, run: Path) -> None:
        save_settings(self.config, run / "config.yaml")

    def finish(self, module: nn.Module, run: Path) -> None:
        """The tokenizer where a build looks for it, frozen from now on; its latents measured."""
        assert isinstance(module, Learner)
        if self.config.result is not None:
            folder = Path(self.config.result)
            save_tokenizer(module.tokenizer, folder)
            chosen = {
                name: Chosen(each, spread(len(each), MEASURED_CLIPS))
                for name, each in self._samples.items()
            }
            save_statistics(measure_on(module.tokenizer, chosen, self._skips), folder)

    def _shown(self, bucket: str) -> np.ndarray:
        """uint8 [n, t, h, w, 3]: the same clips each time."""
        samples = self._samples[bucket]
        if any(each.split == "val" and each.bucket == bucket for each in self.dataset.shards):
            samples = self.dataset.samples("val", bucket)
        count = min(_PREVIEW_CLIPS, len(samples))
        places = shuffled(range(count), len(samples), self.config.trainer.seed, 0)
        return frames_at(samples, places, self._skips)


class _Clips:
    """Some clips of a bucket in chunks, read when asked for; the same on every rank."""

    def __init__(
        self, samples: Samples, count: int, seed: int, device: torch.device, skip_damaged: bool
    ) -> None:
        self._samples = samples
        self._device = device
        self._skip_damaged = skip_damaged
        count = min(count, len(samples))
        items = shuffled(range(count), len(samples), seed, epoch=0)
        bucket = samples.bucket
        size = max(1, _CHUNK_PIXELS // (bucket.num_frames * bucket.height * bucket.width))
        self._chunks = [items[start : start + size] for start in range(0, count, size)]

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        for items in self._chunks:
            frames = frames_at(self._samples, items, self._skip_damaged)
            yield signed(torch.from_numpy(frames).to(self._device))


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 4


def _lpips(config: TokenizerRun, device: torch.device) -> Lpips | None:
    return load_lpips(config.lpips, device) if config.tokenizer.loss.lpips else None


def _copy(folder: Path, tokenizer: Tokenizer) -> None:
    """The weights of a trained tokenizer; UserError when it is made differently."""
    trained = load_tokenizer(find_tokenizer(folder))
    theirs, ours = _made_of(trained.config), _made_of(tokenizer.config)
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"begin.folder: {folder} has another tokenizer.{key} ({theirs.get(key)}) than this run "
            f"({ours[key]}); give the settings it was made with"
        )
    tokenizer.load_state_dict(trained.state_dict())


def _made_of(config: TokenizerConfig) -> dict[str, Any]:
    """The settings that a tokenizer's weights depend on, by name."""
    sections = {config.architecture: config.in_use, "quantizer": config.quantizer}
    return {
        f"{name}.{key}": value
        for name, part in sections.items()
        for key, value in to_dict(part).items()
    }
