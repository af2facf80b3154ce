"""Tokenize: kept clips are decoded in full and become shards, one shard a unit of work.

The unit's encoder owns it: decoded clips come in unit order, are encoded in fixed batches, written
to a tar with its sidecar, and committed. Arrays that an earlier shard has, by their code key, are
copied instead. A clip that cannot be decoded is an error in the accounts, not a failed build.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline import statistics
from pipeline.annotate import accounts, worker_facts
from pipeline.clip import PREPROCESS_VERSION, Clip, make_buckets
from pipeline.commit import Store, fingerprint_of, unit_id
from pipeline.config import BuildConfig, parse_bucket
from pipeline.encode import Encoder, EncoderRecipe
from pipeline.feed import Chunk, make_chunks
from pipeline.plan import PlannedSource
from pipeline.reuse import CodeCopies, CodePlace
from pipeline.select import group_for_shards
from pipeline.shards.format import Bucket, canonical_json
from pipeline.shards.writer import ShardWriter
from pipeline.statistics import Tally
from tokenizer.finite import NotFinite
from tokenizer.settings import UserError, to_dict

TOKENIZE_VERSION = 2  # raise it when the bytes of a shard change for the same codes

DecodedClips = Iterator[tuple[np.ndarray | None, str | None, int]]
Finish = Callable[[], None]


@dataclass(frozen=True)
class ClipUnit:
    """Clips that one model works through, and the decode tasks that feed it.

    `copies` says, by the clip's place in the unit, which arrays are there already, `failures` which
    clips have failed in the same way before; the chunks decode the others.
    """

    id: str
    clips: tuple[Clip, ...]
    chunks: tuple[Chunk, ...]
    copies: Mapping[int, CodePlace] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


class TokenizeJob:
    """What an encoder worker needs to make shards; picklable, without torch until `load_model`."""

    def __init__(self, config: BuildConfig, root: str, recipe: EncoderRecipe) -> None:
        self.config = config
        self.store = Store(root)
        self.recipe = recipe
        self.driver_pid = os.getpid()
        self.fingerprint = fingerprint_of(
            {
                "versions": [TOKENIZE_VERSION, PREPROCESS_VERSION, statistics.VERSION],
                "decoder": config.decoder,
                "limits": to_dict(config.limits),
                "encoder": recipe.fingerprint,
            }
        )
        self._making = fingerprint_of(
            {
                "version": PREPROCESS_VERSION,
                "decoder": config.decoder,
                "encoder": recipe.fingerprint,
            }
        )

    def code_key(self, clip: Clip) -> str:
        """32 hexadecimal digits of what a clip's array is made from, and how.

        Captions, scores and limits are not in it: codes are made once for all of them.
        """
        request = asdict(clip.request())
        return fingerprint_of({"clip": clip.clip_id, "request": request, "how": self._making})[:32]

    def units(
        self,
        selection: Sequence[Clip],
        plan: Sequence[PlannedSource],
    ) -> list[ClipUnit]:
        """One unit a shard; its id covers the clips, what is said of them, and the settings."""
        samples_per_shard = self.config.tokenize.samples_per_shard
        units = []
        for clips in group_for_shards(selection, plan, samples_per_shard):
            inputs = [
                [self.code_key(clip), canonical_json(clip.metadata()).decode()] for clip in clips
            ]
            identity = unit_id("tokenize", inputs, self.fingerprint)
            units.append(ClipUnit(identity, tuple(clips), ()))
        return units

    def fed(
        self,
        units: Sequence[ClipUnit],
        plan: Sequence[PlannedSource],
        known: Mapping[str, CodePlace],
        failed: Mapping[str, str],
    ) -> list[ClipUnit]:
        """The units with what they are made of: arrays known by code key, failures, and chunks."""
        paths = {row.source_id: row.path for row in reversed(plan)}
        result = []
        for unit in units:
            keys = [self.code_key(clip) for clip in unit.clips]
            copies = {place: known[key] for place, key in enumerate(keys) if key in known}
            failures = {
                place: failed[clip.clip_id]
                for place, clip in enumerate(unit.clips)
                if clip.clip_id in failed and place not in copies
            }
            fresh = [
                clip
                for place, clip in enumerate(unit.clips)
                if place not in copies and place not in failures
            ]
            chunks = make_chunks(
                fresh,
                [clip.request() for clip in fresh],
                paths,
                self.config.decoder,
                self.config.limits,
                self.config.tokenize.clips_per_decode,
            )
            result.append(replace(unit, chunks=tuple(chunks), copies=copies, failures=failures))
        return result

    def load_model(self) -> Encoder:
        return self.recipe.load()

    def process(self, unit: ClipUnit, decoded: DecodedClips, model: Encoder) -> Finish:
        """Encodes a unit into a draft of its shard; the result publishes and commits it."""
        shard = _Shard(self, unit, model)
        try:
            for clip, array, error in _encoded(unit, decoded, shard.log, model):
                shard.add(clip, array, error)
        except BaseException:
            shard.draft.close()
            raise
        return shard.finish

    def bucket(self, name: str) -> Bucket:
        buckets = make_buckets(parse_bucket(text) for text in self.config.clips.buckets)
        return next(each for each in buckets if each.name == name)


@dataclass
class _Log:
    """Who decoded and how long what took: for a commit's `run`."""

    started_at: float = field(default_factory=time.time)
    decoder_pids: set[int] = field(default_factory=set)
    num_encoded: int = 0
    encode_seconds: float = 0.0
    encode_span: list[float] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        facts = worker_facts()
        return {
            "host": facts["host"],
            "encoder_pid": facts["pid"],
            "decoder_pids": sorted(self.decoder_pids),
            "started_at": round(self.started_at, 3),
            "finished_at": round(time.time(), 3),
            "seconds": round(time.time() - self.started_at, 3),
            "encode_seconds": round(self.encode_seconds, 3),
            "encode_span": [round(each, 3) for each in self.encode_span],
            "num_encoded": self.num_encoded,
        }


class _Shard:
    """A shard in the making: its draft, and what its commit will say."""

    def __init__(self, job: TokenizeJob, unit: ClipUnit, model: Encoder) -> None:
        self.log = _Log()
        self._job = job
        self._unit = unit
        self._token_set = model.token_set
        self._bucket = job.bucket(unit.clips[0].bucket)
        self._schedule = model.schedule(self._bucket)
        self._tally = Tally()
        self._outcomes: Counter[str] = Counter()
        self._failed: dict[str, str] = {}
        short = unit.id.removeprefix("tokenize-")[:12]
        self.draft = job.store.draft(f"{unit.clips[0].split}-{self._bucket.name}-{short}")
        self._writer = ShardWriter(self.draft.stream, (self._token_set.member,))

    def add(self, clip: Clip, array: np.ndarray | None, error: str | None) -> None:
        if array is None:
            self._failed[clip.clip_id] = f"error:{error}"
            self._outcomes[f"error:{error}"] += 1
            return
        metadata = clip.metadata()
        self._writer.write(
            clip.key,
            {self._token_set.member: array},
            metadata,
            clip=clip.view_group,
            code_key=self._job.code_key(clip),
        )
        self._outcomes["kept"] += 1
        self._tally.add_sample(
            metadata,
            array if self._schedule else None,
            self._schedule.scale_of_token if self._schedule else None,
            self._token_set.codebook_size,
            array.nbytes,
        )

    def finish(self) -> None:
        """Publishes tar and sidecar, then commits."""
        unit, store = self._unit, self._job.store
        with self.draft:
            sidecar = self._writer.close()
            parts = []
            if self._outcomes["kept"]:
                part = self.draft.publish(".tar")
                parts = [part, store.write_beside(part, ".idx", sidecar)]
        for outcome, count in sorted(self._outcomes.items()):
            self._tally.add_outcome(outcome, count)
        result = {
            "phase": "tokenize",
            "fingerprint": self._job.fingerprint,
            "how": dict(self._job.recipe.how),
            "parts": [asdict(each) for each in parts],
            "split": unit.clips[0].split,
            "bucket": self._bucket.name,
            "schedule": self._schedule.to_list() if self._schedule else None,
            "token_set": asdict(self._token_set),
            "num_samples": self._outcomes["kept"],
            "failed": self._failed,
            **accounts(self._outcomes),
            "statistics": self._tally.to_json(),
        }
        run = self.log.facts() | {"driver_pid": self._job.driver_pid}
        store.commit(unit.id, result, run)


def _encoded(
    unit: ClipUnit, decoded: DecodedClips, log: _Log, model: Encoder
) -> Iterator[tuple[Clip, np.ndarray | None, str | None]]:
    """Every clip of the unit in order, with its array or its error class."""
    waiting: list[tuple[int, Clip, str | None]] = []
    batch: dict[int, np.ndarray] = {}

    def flush() -> Iterator[tuple[Clip, np.ndarray | None, str | None]]:
        try:
            arrays = dict(zip(batch, _timed_encode(model, list(batch.values()), log)))
        except NotFinite as caught:
            clip = unit.clips[list(batch)[caught.row]]
            raise UserError(f"{clip.uri}, clip {clip.clip_id}: {caught.reason}") from None
        for place, clip, error in waiting:
            if place in unit.copies:
                yield clip, copies.read(unit.copies[place]), None
            else:
                yield clip, arrays.get(place), error
        waiting.clear()
        batch.clear()

    with CodeCopies() as copies:
        for place, clip in enumerate(unit.clips):
            error = unit.failures.get(place)
            if place not in unit.copies and error is None:
                frames, error, pid = next(decoded)
                log.decoder_pids.add(pid)
                if frames is not None:
                    batch[place] = frames
            waiting.append((place, clip, error))
            if len(batch) == model.batch_size:
                yield from flush()
        yield from flush()


def _timed_encode(model: Encoder, frames: list[np.ndarray], log: _Log) -> np.ndarray | tuple[()]:
    if not frames:
        return ()
    started = time.time()
    codes = model.encode(np.stack(frames))
    finished = time.time()
    log.num_encoded += len(frames)
    log.encode_seconds += finished - started
    log.encode_span = [log.encode_span[0] if log.encode_span else started, finished]
    return codes
