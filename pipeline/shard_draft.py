"""A shard in the making: its tar as it is written, and what its commit will say.

shard = ShardDraft(store, unit_id, "train", bucket, encoders)
shard.add(clip, {"codes": codes}, code_key)
shard.finish(made_by, log)
[(token_set, schedule), *further] = token_sets_of(result)      # of a commit's result
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.annotate import accounts, worker_facts
from pipeline.clip import Clip
from pipeline.commit import Store
from pipeline.encode import Encoder
from pipeline.shards.format import Bucket, TokenSet
from pipeline.shards.writer import ShardWriter
from pipeline.statistics import Tally
from tokenizer.scales import Schedule

LaidOut = tuple[TokenSet, Schedule | None]
"""A token set, and how its codes lie in one bucket; None for what are no codes."""


class ShardDraft:
    """The shard of one unit, its token sets those of `encoders`, the primary one first."""

    def __init__(
        self, store: Store, unit_id: str, split: str, bucket: Bucket, encoders: Sequence[Encoder]
    ) -> None:
        self._store = store
        self._unit_id = unit_id
        self._split = split
        self._bucket = bucket
        self._token_sets = [(each.token_set, each.schedule(bucket)) for each in encoders]
        self._tally = Tally()
        self._outcomes: Counter[str] = Counter()
        self._failed: dict[str, str] = {}
        short = unit_id.removeprefix("tokenize-")[:12]
        self._draft = store.draft(f"{split}-{bucket.name}-{short}")
        members = tuple(each.member for each, _ in self._token_sets)
        self._writer = ShardWriter(self._draft.stream, members)

    def add(self, clip: Clip, arrays: Mapping[str, np.ndarray], code_key: str) -> None:
        """A clip with its arrays by token set; `code_key` is the primary one's."""
        metadata = clip.metadata()
        self._writer.write(
            clip.key,
            {each.member: arrays[each.name] for each, _ in self._token_sets},
            metadata,
            clip=clip.view_group,
            code_key=code_key,
        )
        self._outcomes["kept"] += 1
        add_to_tally(self._tally, metadata, arrays, self._token_sets)

    def add_failure(self, clip: Clip, error: str) -> None:
        """A clip that could not be decoded, with the class of its error."""
        self._failed[clip.clip_id] = f"error:{error}"
        self._outcomes[f"error:{error}"] += 1

    def close(self) -> None:
        """Gives the draft up."""
        self._draft.close()

    def finish(self, made_by: Mapping[str, Any], log: EncodingLog) -> None:
        """Publishes tar and sidecar, then commits; `made_by` becomes part of the result."""
        with self._draft:
            sidecar = self._writer.close()
            parts = []
            if self._outcomes["kept"]:
                part = self._draft.publish(".tar")
                parts = [part, self._store.write_beside(part, ".idx", sidecar)]
        for outcome, count in sorted(self._outcomes.items()):
            self._tally.add_outcome(outcome, count)
        primary, *further = [
            {"token_set": asdict(each), "schedule": schedule.to_list() if schedule else None}
            for each, schedule in self._token_sets
        ]
        result = {
            "phase": "tokenize",
            **made_by,
            "parts": [asdict(each) for each in parts],
            "split": self._split,
            "bucket": self._bucket.name,
            **primary,
            "num_samples": self._outcomes["kept"],
            "failed": self._failed,
            **accounts(self._outcomes),
            "statistics": self._tally.to_json(),
        }
        if further:
            result["further"] = further
        self._store.commit(self._unit_id, result, log.facts())


def token_sets_of(result: Mapping[str, Any]) -> list[LaidOut]:
    """The token sets of a committed shard, the primary one first."""
    rows = [result, *result.get("further", ())]
    return [
        (
            TokenSet(**row["token_set"]),
            Schedule.from_list(row["schedule"]) if row["schedule"] else None,
        )
        for row in rows
    ]


def add_to_tally(
    tally: Tally,
    metadata: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    token_sets: Sequence[LaidOut],
) -> None:
    """Counts a sample whose arrays are given by token set."""
    (primary, schedule), *further = token_sets
    tally.add_sample(
        metadata,
        arrays[primary.name] if schedule else None,
        schedule.scale_of_token if schedule else None,
        primary.codebook_size,
        sum(array.nbytes for array in arrays.values()),
    )
    for token_set, schedule in further:
        if schedule is not None and token_set.codebook_size is not None:
            tally.add_further(
                token_set.name,
                metadata,
                arrays[token_set.name],
                schedule.scale_of_token,
                token_set.codebook_size,
            )


@dataclass
class EncodingLog:
    """Who decoded and how long what took: for a commit's `run`."""

    driver_pid: int
    started_at: float = field(default_factory=time.time)
    decoder_pids: set[int] = field(default_factory=set)
    num_encoded: int = 0
    encode_seconds: float = 0.0
    encode_span: list[float] = field(default_factory=list)

    def encoded(self, num_arrays: int, started: float, finished: float) -> None:
        """Adds a batch of one encoder."""
        self.num_encoded += num_arrays
        self.encode_seconds += finished - started
        self.encode_span = [self.encode_span[0] if self.encode_span else started, finished]

    def facts(self) -> dict[str, Any]:
        facts = worker_facts()
        return {
            "host": facts["host"],
            "encoder_pid": facts["pid"],
            "decoder_pids": sorted(self.decoder_pids),
            "driver_pid": self.driver_pid,
            "started_at": round(self.started_at, 3),
            "finished_at": round(time.time(), 3),
            "seconds": round(time.time() - self.started_at, 3),
            "encode_seconds": round(self.encode_seconds, 3),
            "encode_span": [round(each, 3) for each in self.encode_span],
            "num_encoded": self.num_encoded,
        }
