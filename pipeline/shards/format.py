"""What a dataset of shards declares about itself: `shards.json` and the records in it.

    DIR/shards.json       token sets, buckets, shards; written last but one, read first
    DIR/index.bin         the sidecars of all shards, one after the other
    DIR/parts/*.tar       shards: KEY.<token set>.npy and KEY.json, adjacent, keys sorted
    DIR/_SUCCESS          the build is complete

Version 2. Unknown versions, kinds and dtypes are errors, never guesses; a dataset of version 1 is
brought forward by `tessera migrate`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from tokenizer.scales import Schedule

FORMAT_VERSION = 2
SHARDS_FILE = "shards.json"
INDEX_FILE = "index.bin"
SUCCESS_FILE = "_SUCCESS"
KINDS = ("codes", "latents", "frames")
DTYPES = ("uint16", "uint32", "float16", "uint8", "bits")


class ShardError(Exception):
    """A shard, sidecar or `shards.json` is damaged, foreign or of an unknown version."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """One kind of array per sample: `KEY.<name>.npy`.

    `dtype` "bits" packs each code into `bits_per_code` bits, least significant first, as uint8.
    """

    name: str
    kind: Literal["codes", "latents", "frames"]
    dtype: str
    codebook_size: int | None = None
    tokenizer: str | None = None

    @property
    def bits_per_code(self) -> int | None:
        return None if self.codebook_size is None else (self.codebook_size - 1).bit_length()

    @property
    def member(self) -> str:
        return f"{self.name}.npy"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Samples of one shape: `num_frames` x `height` x `width` pixels, and how their codes lie.

    `schedule` is that of the primary token set; `schedules` those of further ones, by name.
    """

    name: str
    num_frames: int
    height: int
    width: int
    schedule: Schedule | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One published shard; `index_offset` and `index_bytes` locate its sidecar in `index.bin`."""

    path: str
    sha256: str
    size_bytes: int
    num_samples: int
    bucket: str
    split: str
    index_offset: int
    index_bytes: int


def bucket_name(num_frames: int, height: int, width: int) -> str:
    return f"t{num_frames}_h{height}_w{width}"


def dump_declaration(
    token_sets: Sequence[TokenSet], buckets: Sequence[Bucket], shards: Sequence[ShardEntry]
) -> str:
    """The text of `shards.json`; its fingerprint covers token sets, buckets and shard contents."""
    sets = [asdict(each) | {"bits_per_code": each.bits_per_code} for each in token_sets]
    shapes = [
        {
            "name": each.name,
            "num_frames": each.num_frames,
            "height": each.height,
            "width": each.width,
            "schedule": each.schedule.to_list() if each.schedule else None,
            "schedules": {name: value.to_list() for name, value in each.schedules.items()},
        }
        for each in buckets
    ]
    identity = [sets, shapes, [[each.split, each.bucket, each.sha256] for each in shards]]
    declaration = {
        "format_version": FORMAT_VERSION,
        "fingerprint": hashlib.sha256(canonical_json(identity)).hexdigest(),
        "token_sets": sets,
        "buckets": shapes,
        "shards": [asdict(each) for each in shards],
    }
    return json.dumps(declaration, indent=1, sort_keys=True) + "\n"


def parse_declaration(
    text: str, where: str
) -> tuple[str, list[TokenSet], list[Bucket], list[ShardEntry]]:
    """(fingerprint, token sets, buckets, shards) of a `shards.json`; raises ShardError."""
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise ShardError(
                f"{where}: format version {version!r}; this code reads {FORMAT_VERSION} "
                "(`tessera migrate` brings older ones forward)"
            )
        sets = [_token_set(row, where) for row in values["token_sets"]]
        buckets = [_bucket(row) for row in values["buckets"]]
        shards = [ShardEntry(**row) for row in values["shards"]]
        fingerprint = str(values["fingerprint"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{where}: not a valid shard list ({error})") from None
    for shard in shards:
        path = PurePosixPath(shard.path)
        if path.is_absolute() or ".." in path.parts:
            raise ShardError(f"{where}: shard path {shard.path!r} leaves the folder")
    return fingerprint, sets, buckets, shards


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8."""
    return _CANONICAL.encode(value).encode()


def _token_set(row: Mapping[str, Any], where: str) -> TokenSet:
    fields = {key: value for key, value in row.items() if key != "bits_per_code"}
    token_set = TokenSet(**fields)
    if token_set.kind not in KINDS:
        raise ShardError(f"{where}: unknown kind {token_set.kind!r}; known: {', '.join(KINDS)}")
    if token_set.dtype not in DTYPES:
        raise ShardError(f"{where}: unknown dtype {token_set.dtype!r}; known: {', '.join(DTYPES)}")
    return token_set


def _bucket(row: Mapping[str, Any]) -> Bucket:
    schedule = row["schedule"]
    further = {str(name): Schedule.from_list(each) for name, each in row["schedules"].items()}
    layout = Schedule.from_list(schedule) if schedule else None
    return Bucket(**{**row, "schedule": layout, "schedules": further})
