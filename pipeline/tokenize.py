"""Tokenize: kept clips are decoded in full and become shards, one shard a unit of work.

The unit's encoder owns it: decoded clips come in unit order, are encoded in fixed batches, written
to a tar with its sidecar, and committed. A clip that cannot be decoded is an error in the accounts,
not a failed build.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.annotate import accounts, worker_facts
from pipeline.clip import PREPROCESS_VERSION, Clip, make_buckets
from pipeline.commit import Store, fingerprint_of, unit_id
from pipeline.config import BuildConfig, parse_bucket
from pipeline.encode import Encoder, EncoderRecipe
from pipeline.feed import Chunk, make_chunks
from pipeline.plan import PlannedSource
from pipeline.select import group_for_shards
from pipeline.shards.format import Bucket, canonical_json
from pipeline.shards.writer import ShardWriter
from pipeline.statistics import add_outcome, add_sample, empty_statistics
from tokenizer.settings import to_dict

TOKENIZE_VERSION = 2  # raise it when the bytes of a shard change for the same codes

DecodedClips = Iterator[tuple[np.ndarray | None, str | None, int]]


@dataclass(frozen=True)
class ClipUnit:
    """Clips that one model works through, and the decode tasks that feed it."""

    id: str
    clips: tuple[Clip, ...]
    chunks: tuple[Chunk, ...]


class TokenizeJob:
    """What an encoder worker needs to make shards; picklable, without torch until `load_model`."""

    def __init__(self, config: BuildConfig, root: Path, recipe: EncoderRecipe) -> None:
        self.config = config
        self.store = Store(root)
        self.recipe = recipe
        self.driver_pid = os.getpid()
        self.fingerprint = fingerprint_of(
            {
                "versions": [TOKENIZE_VERSION, PREPROCESS_VERSION],
                "decoder": config.decoder,
                "limits": to_dict(config.limits),
                "encoder": recipe.fingerprint,
            }
        )

    def units(self, selection: Sequence[Clip], plan: Sequence[PlannedSource]) -> list[ClipUnit]:
        """One unit a shard; its id covers the clips, what is said of them, and the settings."""
        settings = self.config.tokenize
        paths = {row.source_id: row.path for row in reversed(plan)}
        units = []
        for clips in group_for_shards(selection, settings.samples_per_shard):
            inputs = [canonical_json(clip.metadata()).decode() for clip in clips]
            chunks = make_chunks(
                clips,
                [clip.request() for clip in clips],
                paths,
                self.config.decoder,
                self.config.limits,
                settings.clips_per_decode,
            )
            identity = unit_id("tokenize", inputs, self.fingerprint)
            units.append(ClipUnit(identity, tuple(clips), tuple(chunks)))
        return units

    def load_model(self) -> Encoder:
        return self.recipe.load()

    def run(self, unit: ClipUnit, decoded: DecodedClips, model: Encoder) -> str:
        """Encodes, writes and commits a unit in this process; returns its id."""
        started = time.monotonic()
        bucket = self._bucket(unit)
        schedule = model.schedule(bucket)
        statistics = empty_statistics()
        outcomes: Counter[str] = Counter()
        failed: dict[str, str] = {}
        pids: set[int] = set()
        sidecars: list[bytes] = []

        def write(file: IO[bytes]) -> None:
            writer = ShardWriter(file, (model.token_set.member,))
            for clip, array, error in self._encoded(unit, decoded, model, pids):
                if array is None:
                    failed[clip.clip_id] = f"error:{error}"
                    outcomes[failed[clip.clip_id]] += 1
                    continue
                metadata = clip.metadata()
                writer.write(clip.key, {model.token_set.member: array}, metadata)
                outcomes["kept"] += 1
                add_sample(
                    statistics,
                    metadata,
                    array if schedule else None,
                    schedule.scale_of_token if schedule else None,
                    model.token_set.codebook_size,
                    array.nbytes,
                )
            sidecars.append(writer.close())

        name = f"{unit.clips[0].split}-{bucket.name}-{unit.id.removeprefix('tokenize-')[:12]}"
        part = self.store.write_part(name, ".tar", write)
        parts = [part, self.store.write_beside(part, ".idx", sidecars[0])]
        if not outcomes["kept"]:
            self.store.discard(parts)
            parts = []
        for outcome, count in sorted(outcomes.items()):
            add_outcome(statistics, outcome, count)
        result = {
            "phase": "tokenize",
            "fingerprint": self.fingerprint,
            "parts": [asdict(each) for each in parts],
            "split": unit.clips[0].split,
            "bucket": bucket.name,
            "schedule": schedule.to_list() if schedule else None,
            "token_set": asdict(model.token_set),
            "num_samples": outcomes["kept"],
            "failed": failed,
            **accounts(outcomes),
            "statistics": statistics,
        }
        facts = worker_facts()
        run: dict[str, Any] = {
            "host": facts["host"],
            "encoder_pid": facts["pid"],
            "decoder_pids": sorted(pids),
            "driver_pid": self.driver_pid,
            "seconds": round(time.monotonic() - started, 3),
        }
        self.store.commit(unit.id, result, run)
        return unit.id

    def _bucket(self, unit: ClipUnit) -> Bucket:
        buckets = make_buckets(parse_bucket(text) for text in self.config.clips.buckets)
        return next(each for each in buckets if each.name == unit.clips[0].bucket)

    def _encoded(
        self, unit: ClipUnit, decoded: DecodedClips, model: Encoder, pids: set[int]
    ) -> Iterable[tuple[Clip, np.ndarray | None, str | None]]:
        """Every clip of the unit in order, with its array or its error class."""
        waiting: list[tuple[Clip, np.ndarray | None, str | None]] = []
        num_frames = 0
        for clip, (frames, error, pid) in zip(unit.clips, decoded, strict=True):
            pids.add(pid)
            waiting.append((clip, frames, error))
            num_frames += frames is not None
            if num_frames == model.batch_size:
                yield from _encode_waiting(waiting, model)
                waiting, num_frames = [], 0
        yield from _encode_waiting(waiting, model)


def _encode_waiting(
    waiting: list[tuple[Clip, np.ndarray | None, str | None]], model: Encoder
) -> Iterator[tuple[Clip, np.ndarray | None, str | None]]:
    batch = [frames for _, frames, _ in waiting if frames is not None]
    arrays = iter(model.encode(np.stack(batch)) if batch else ())
    for clip, frames, error in waiting:
        yield clip, None if frames is None else next(arrays), error
