"""Tokenize: kept clips are decoded in full and become shards, one shard a unit of work.

The unit's encoders own it, one for each token set: decoded clips come in unit order, are encoded in
fixed batches, written to a tar with its sidecar, and committed. Arrays that an earlier shard has,
by their code key, are copied instead; a clip is decoded when one of its arrays is in none. A clip
that cannot be decoded is an error in the accounts, not a failed build.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline import statistics
from pipeline.clip import PREPROCESS_VERSION, Clip, make_buckets
from pipeline.commit import Store, fingerprint_of, unit_id
from pipeline.config import BuildConfig, decoder_recipe, parse_bucket
from pipeline.encode import Encoder, EncoderRecipe
from pipeline.feed import Chunk, make_chunks
from pipeline.plan import PlannedSource
from pipeline.reuse import CodeCopies, CodePlace
from pipeline.select import group_for_shards
from pipeline.shard_draft import EncodingLog, ShardDraft
from pipeline.shards.format import Bucket, canonical_json
from tokenizer.finite import NotFinite
from tokenizer.settings import UserError, to_dict

TOKENIZE_VERSION = 2  # raise it when the bytes of a shard change for the same codes

DecodedClips = Iterator[tuple[np.ndarray | None, str | None, int]]
Finish = Callable[[], None]


@dataclass(frozen=True)
class ClipUnit:
    """Clips that one model works through, and the decode tasks that feed it.

    `copies` says, by the clip's place in the unit, which arrays are there already, by token set,
    `failures` which clips have failed in the same way before; the chunks decode the others.
    """

    id: str
    clips: tuple[Clip, ...]
    chunks: tuple[Chunk, ...]
    copies: Mapping[int, Mapping[str, CodePlace]] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


class TokenizeJob:
    """What an encoder worker needs to make shards; picklable, without torch until `load_model`.

    `further` are the recipes of token sets beside the primary one; `makings` says, by token set,
    how its arrays are made.
    """

    def __init__(
        self,
        config: BuildConfig,
        root: str,
        recipe: EncoderRecipe,
        further: Sequence[EncoderRecipe] = (),
    ) -> None:
        self.config = config
        self.store = Store(root)
        self.recipes = (recipe, *further)
        self.driver_pid = os.getpid()
        self.recipe = decoder_recipe(config)
        facts: dict[str, Any] = {
            "versions": [TOKENIZE_VERSION, PREPROCESS_VERSION, statistics.VERSION],
            "decoder": self.recipe.facts(),
            "limits": to_dict(config.limits),
            "encoder": recipe.fingerprint,
        }
        if further:
            facts["further"] = [[each.name, each.fingerprint] for each in further]
        self.fingerprint = fingerprint_of(facts)
        how = {"version": PREPROCESS_VERSION, "decoder": self.recipe.facts()}
        self.makings = {
            each.name: fingerprint_of({**how, "encoder": each.fingerprint}) for each in self.recipes
        }

    def code_key(self, clip: Clip, making: str | None = None) -> str:
        """32 hexadecimal digits of what a clip's array is made from, and how.

        `making` is that of a token set (default: the primary one). Captions, scores and limits are
        not in it: codes are made once for all of them.
        """
        facts = {
            "clip": clip.clip_id,
            "request": asdict(clip.request()),
            "how": making or self.makings[self.recipes[0].name],
        }
        return fingerprint_of(facts)[:32]

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
        files = {row.source_id: row for row in reversed(plan)}
        result = []
        for unit in units:
            copies = {
                place: found
                for place, clip in enumerate(unit.clips)
                if (found := self._copies(clip, known))
            }
            failures = {
                place: failed[clip.clip_id]
                for place, clip in enumerate(unit.clips)
                if clip.clip_id in failed and not _is_whole(copies.get(place), self.makings)
            }
            fresh = [
                clip
                for place, clip in enumerate(unit.clips)
                if place not in failures and not _is_whole(copies.get(place), self.makings)
            ]
            chunks = make_chunks(
                fresh,
                [clip.request() for clip in fresh],
                files,
                self.recipe,
                self.config.tokenize.clips_per_decode,
            )
            result.append(replace(unit, chunks=tuple(chunks), copies=copies, failures=failures))
        return result

    def load_model(self) -> tuple[Encoder, ...]:
        """The encoder of each token set, the primary one's first."""
        return tuple(recipe.load() for recipe in self.recipes)

    def process(self, unit: ClipUnit, decoded: DecodedClips, encoders: Sequence[Encoder]) -> Finish:
        """Encodes a unit into a draft of its shard; the result publishes and commits it."""
        log = EncodingLog(self.driver_pid)
        first = unit.clips[0]
        shard = ShardDraft(self.store, unit.id, first.split, self.bucket(first.bucket), encoders)
        try:
            for clip, arrays, error in _encoded(unit, decoded, log, encoders):
                if arrays is None:
                    shard.add_failure(clip, str(error))
                else:
                    shard.add(clip, arrays, self.code_key(clip))
        except BaseException:
            shard.close()
            raise
        return lambda: shard.finish(self._made_by(), log)

    def bucket(self, name: str) -> Bucket:
        buckets = make_buckets(parse_bucket(text) for text in self.config.clips.buckets)
        return next(each for each in buckets if each.name == name)

    def _copies(self, clip: Clip, known: Mapping[str, CodePlace]) -> dict[str, CodePlace]:
        """The arrays of a clip that are known, by token set."""
        keys = {name: self.code_key(clip, making) for name, making in self.makings.items()}
        return {name: known[key] for name, key in keys.items() if key in known}

    def _made_by(self) -> dict[str, Any]:
        """What a commit says of how its arrays were made."""
        primary, *further = self.recipes
        made_by: dict[str, Any] = {"fingerprint": self.fingerprint, "how": dict(primary.how)}
        if further:
            made_by["makings"] = self.makings
            made_by["further_how"] = {each.name: dict(each.how) for each in further}
        return made_by


def _is_whole(copies: Mapping[str, CodePlace] | None, token_sets: Collection[str]) -> bool:
    return copies is not None and all(name in copies for name in token_sets)


def _encoded(
    unit: ClipUnit, decoded: DecodedClips, log: EncodingLog, encoders: Sequence[Encoder]
) -> Iterator[tuple[Clip, Mapping[str, np.ndarray] | None, str | None]]:
    """Every clip of the unit in order, with its arrays by token set, or its error class."""
    names = [encoder.token_set.name for encoder in encoders]
    waiting: list[tuple[int, Clip, str | None]] = []
    batch: dict[int, np.ndarray] = {}

    def flush() -> Iterator[tuple[Clip, Mapping[str, np.ndarray] | None, str | None]]:
        made = {each.token_set.name: _made(each, unit, batch, log) for each in encoders}
        for place, clip, error in waiting:
            there = unit.copies.get(place, {})
            arrays = None
            if error is None:
                arrays = {
                    name: copies.read(there[name]) if name in there else made[name][place]
                    for name in names
                }
            yield clip, arrays, error
        waiting.clear()
        batch.clear()

    with CodeCopies() as copies:
        for place, clip in enumerate(unit.clips):
            error = unit.failures.get(place)
            if error is None and not _is_whole(unit.copies.get(place), names):
                frames, error, pid = next(decoded)
                log.decoder_pids.add(pid)
                if frames is not None:
                    batch[place] = frames
            waiting.append((place, clip, error))
            if len(batch) == encoders[0].batch_size:
                yield from flush()
        yield from flush()


def _made(
    encoder: Encoder, unit: ClipUnit, batch: Mapping[int, np.ndarray], log: EncodingLog
) -> dict[int, np.ndarray]:
    """What the encoder makes of the clips of a batch whose array is not there already, by place."""
    name = encoder.token_set.name
    places = [place for place in batch if name not in unit.copies.get(place, ())]
    if not places:
        return {}
    started = time.time()
    try:
        arrays = encoder.encode(np.stack([batch[place] for place in places]))
    except NotFinite as caught:
        clip = unit.clips[places[caught.row]]
        raise UserError(f"{clip.uri}, clip {clip.clip_id}: {caught.reason}") from None
    log.encoded(len(places), started, time.time())
    return dict(zip(places, arrays))
