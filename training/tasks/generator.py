"""Training a generator: cross-entropy of every cell's code under teacher forcing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.shards import Batch, Bucket, Dataset, Samples, Source
from tokenizer.door import check_codes
from tokenizer.folder import load_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.scales import Schedule
from tokenizer.settings import UserError, to_dict
from training.caption_features import FEATURES_FILE, CaptionFeatures
from training.config import GeneratorRun
from training.data import data_order, open_loader, open_sources, prompts_in
from training.draws import numpy_generator
from training.flops import training_flops
from training.generator import Generator
from training.generator_preview import preview_generator
from training.held_out import HeldOut
from training.loss_parts import loss_by_part
from training.order import check_steps
from training.partial import feature_channels
from training.positions import schedule_for_all
from training.run import OpenedRun, RunRecord, Shape, read_run, write_run
from training.tasks.task import Losses, Mean, Moment, Part, Preview
from training.teacher_forcing import code_logits, code_losses
from training.telling import features_of
from training.vocabulary import ABSENT, FIELDS, Vocabulary, build_vocabulary
from training.warm_start import WarmStart, warm_start


class GeneratorTask:
    """The generator, its shards and the frozen quantizer that they came from."""

    unit = "tokens"
    has_result = False

    def __init__(
        self, config: GeneratorRun, device: str, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config = config
        self.dataset, sources = open_sources(config.data)
        self.tokenizer_dir, self.tokenizer = _tokenizer(self.dataset, device)
        self.vocabulary = _vocabulary(config, sources)
        self._told: CaptionFeatures | None = None
        if self.vocabulary.kind == "clip_text":
            run = None if config.out is None else Path(config.out)
            self._told = features_of(self.vocabulary.names, config.condition, run)
            self.vocabulary = replace(self.vocabulary, tower=self._told.tower)
        self._shapes = _shapes(sources[0].samples)
        self._schedules = {
            name: self.dataset.buckets[name].schedule or _no_schedule(name) for name in self._shapes
        }
        own = schedule_for_all(
            list(self._schedules.values()), config.method.name, config.model.block.position
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.generator = Generator(
                config.model,
                config.method,
                own,
                self.vocabulary,
                self.tokenizer.codebook_size,
                feature_channels(self.tokenizer.quantizer, own),
            ).to(device)
        _check_buckets(self.generator, self._schedules)
        check_steps(config.method.num_steps, self.generator.layout_for(own).order)
        self.generator.condition.told = self._told
        self.module: nn.Module = self.generator
        self.parts = [Part("generator", self.generator, config.optimizer, is_matrix)]
        transformer = self.generator.transformer
        self.blocks: Sequence[nn.Module] = [
            *transformer.blocks,
            *transformer.head_blocks,
            *transformer.second,
        ]
        is_half = config.trainer.precision == "bfloat16"
        self.weight_dtype = torch.bfloat16 if is_half else None
        self._code_losses = code_losses
        if config.parallel.compile:
            self._code_losses = torch.compile(code_losses, dynamic=False)
        self._device = torch.device(device)
        self.loader = open_loader(sources, config.data, config.trainer, rank, world_size)
        self.record = RunRecord(
            dataset=self.dataset.fingerprint,
            tokenizer=self.tokenizer.fingerprint,
            method=config.method.name,
            order=self.generator.layout_for(own).order.fingerprint,
            codebook_size=self.tokenizer.codebook_size,
            feature_channels=feature_channels(self.tokenizer.quantizer, own),
            num_parameters=sum(each.numel() for each in self.generator.parameters()),
            shapes=self._shapes,
        )
        vocabulary = json.dumps(self.vocabulary.to_json(), sort_keys=True)
        self.identity: dict[str, Any] = {
            "task": "generator",
            "dataset": self.record.dataset,
            "tokenizer": self.record.tokenizer,
            "method": self.record.method,
            "order": self.record.order,
            "model": to_dict(config.model),
            "condition": config.condition.kind,
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "seed": config.trainer.seed,
            "global_batch_size": config.trainer.global_batch_size,
            "data_order": data_order(self.loader),
        }
        self._begun: WarmStart | None = None
        self._encoded: dict[str | None, list[int]] = {}
        self._flops: dict[str, float] = {}
        self._held_out = HeldOut(
            self.dataset, config.data, config.trainer, list(self._shapes), rank, world_size
        )

    def begin(self) -> None:
        """From another run's weights, or from those that were drawn."""
        if self.config.begin.run is not None:
            others = self._others_in(Path(self.config.begin.run))
            self._begun = warm_start(self.generator, self.config.begin, others)

    def count(self, batch: Batch) -> int:
        schedule = self._schedules[batch.bucket.name]
        codes = torch.from_numpy(batch.arrays.astype(np.int64))
        check_codes(codes, schedule, self.tokenizer.codebook_size)
        return codes.numel()

    def flops(self, batch: Batch) -> float:
        name = batch.bucket.name
        if name not in self._flops:
            self._flops[name] = training_flops(self.generator, self._schedules[name]).total
        return len(batch) * self._flops[name]

    def losses(self, batch: Batch, moment: Moment) -> Losses:
        schedule = self._schedules[batch.bucket.name]
        codes = torch.from_numpy(batch.arrays.astype(np.int64)).to(self._device)
        sequence = self._sequence(batch, schedule, moment.position)
        prompts = self._prompts(batch, moment.position)
        quantizer = self.tokenizer.quantizer
        logits = code_logits(self.generator, quantizer, codes, prompts, sequence, schedule)
        losses = self._code_losses(logits, codes, sequence)
        order = self.generator.layout_for(schedule).order
        loss, metrics = losses.sum(), loss_by_part(losses.detach(), order)
        if len(self._shapes) > 1:
            metrics[f"loss/{batch.bucket.name}"] = Mean(loss.detach(), losses.numel())
        return Losses(loss, metrics)

    def held_out(self) -> Iterator[Batch]:
        return self._held_out.batches()

    def preview(self, module: nn.Module, run: Path, step: int) -> Preview:
        assert isinstance(module, Generator)
        return preview_generator(self._as_run(module, step), self.config.trainer.preview_clips, run)

    def prepare(self, run: Path) -> None:
        write_run(run, self.config, self.record, self.vocabulary, self.tokenizer_dir)
        if self._begun is not None:
            (run / "warm_start.txt").write_text(f"{self._begun}\n", encoding="utf-8")
        if self._told is not None:
            self._told.save(run / FEATURES_FILE)

    def finish(self, module: nn.Module, run: Path) -> None:
        """Nothing: the last checkpoint is the generator."""

    def _others_in(self, run: Path) -> dict[str, str]:
        """Which parameters of another run stand for other things than this run's would."""
        if not (run / "run.json").exists():
            return {}
        record, _, vocabulary = read_run(run)
        others: dict[str, str] = {}
        if record.tokenizer != self.record.tokenizer:
            rows = ("codes.", "heads.", "features.")
            others |= dict.fromkeys(rows, "codes of another tokenizer")
        mine, theirs = (
            (each.kind, each.names if each.tower is None else each.tower, each.merges)
            for each in (self.vocabulary, vocabulary)
        )
        if mine != theirs:
            others |= dict.fromkeys(
                ("condition.pooled", "condition.pieces"), "other words or classes"
            )
        return others

    def _as_run(self, generator: Generator, step: int) -> OpenedRun:
        """The run as it would be opened now."""
        return OpenedRun(
            record=self.record,
            config=self.config,
            vocabulary=self.vocabulary,
            generator=generator,
            tokenizer=self.tokenizer,
            step=step,
            fingerprint="",
        )

    def _sequence(self, batch: Batch, schedule: Schedule, position: int) -> Tensor:
        """The cell at each place: the method's, or drawn by each clip's place in the batch."""
        order = self.generator.layout_for(schedule).order
        if not order.shuffled:
            return torch.from_numpy(order.sequence)[None].to(self._device)
        drawn = [
            order.drawn(numpy_generator(self.config.trainer.seed, "order", position, number))
            for number in range(batch.start, batch.stop)
        ]
        return torch.from_numpy(np.stack(drawn)).to(self._device)

    def _prompts(self, batch: Batch, position: int) -> Tensor:
        """Encoded prompts; in training a share of them is dropped, by a draw keyed by their place
        in the batch."""
        field = FIELDS.get(self.vocabulary.kind, "caption")
        encoded = torch.tensor(
            [self._encode(each[field]) for each in batch.metadata], dtype=torch.int64
        ).view(len(batch.metadata), self.vocabulary.length)
        if not self.generator.training:
            return encoded.to(self._device)
        draws = numpy_generator(self.config.trainer.seed, "condition dropout", position)
        uniform = draws.random(batch.global_size)[batch.start : batch.stop]
        dropped = torch.from_numpy(uniform < self.config.condition.dropout)
        return encoded.masked_fill(dropped[:, None], ABSENT).to(self._device)

    def _encode(self, prompt: str | None) -> list[int]:
        """Word pieces; held-out clips with words that the run does not know have no prompt."""
        if prompt not in self._encoded:
            try:
                self._encoded[prompt] = self.vocabulary.encode(prompt, cut=True)
            except UserError:
                self._encoded[prompt] = [ABSENT] * self.vocabulary.length
        return self._encoded[prompt]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """The weights of the transformer's linear maps; `offset` is six vectors, not one of them."""
    return parameter.ndim == 2 and name.startswith("transformer.") and name.endswith(".weight")


def _tokenizer(dataset: Dataset, device: str) -> tuple[Path, Tokenizer]:
    """The dataset's tokenizer; UserError when its shards are no codes, or another tokenizer's."""
    token_set = dataset.primary
    if token_set.kind != "codes":
        raise UserError(
            f"{dataset.root}: holds {token_set.kind}, a generator learns codes; "
            "run `tessera build` with a tokenizer"
        )
    if dataset.tokenizer_dir is None:
        raise UserError(f"{dataset.root}: the dataset has no tokenizer folder; build it again")
    tokenizer = load_tokenizer(dataset.tokenizer_dir, device=device)
    if token_set.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"{dataset.root}: shards of another tokenizer: their codes come from "
            f"{str(token_set.tokenizer)[:12]}, {dataset.tokenizer_dir} is "
            f"{tokenizer.fingerprint[:12]}; build the dataset again"
        )
    if token_set.codebook_size not in (None, tokenizer.codebook_size):
        raise UserError(
            f"{dataset.root}: says its codes are of {token_set.codebook_size}, its tokenizer has "
            f"{tokenizer.codebook_size}; build the dataset again"
        )
    return dataset.tokenizer_dir, tokenizer


def _vocabulary(config: GeneratorRun, sources: Sequence[Source]) -> Vocabulary:
    kind = config.condition.kind
    prompts = prompts_in(sources, kind, config.data.damaged == "skip")
    return build_vocabulary(kind, prompts, config.condition.max_pieces)


def _shapes(samples: Mapping[str, Samples]) -> dict[str, Shape]:
    """The buckets trained on, longest first: videos by their codes, then images."""
    buckets = sorted((each.bucket for each in samples.values()), key=_length)
    return {
        each.name: Shape(
            num_frames=each.num_frames,
            height=each.height,
            width=each.width,
            schedule=each.schedule.to_list() if each.schedule else [],
        )
        for each in buckets
    }


def _length(bucket: Bucket) -> tuple[Any, ...]:
    """What puts the longest first, however they were named; equally long ones by their scales."""
    schedule = bucket.schedule or _no_schedule(bucket.name)
    return schedule.num_latent_frames == 1, -schedule.num_tokens, schedule.scales


def _check_buckets(generator: Generator, schedules: Mapping[str, Schedule]) -> None:
    """UserError for the first bucket that the generator cannot make, before anything is trained."""
    for name, schedule in schedules.items():
        try:
            generator.layout_for(schedule)
        except UserError as error:
            raise UserError(
                f"bucket {name}: {error}; data.buckets says which to train on"
            ) from None


def _no_schedule(bucket: str) -> Any:
    raise UserError(f"bucket {bucket} has no schedule of codes; build the dataset again")
