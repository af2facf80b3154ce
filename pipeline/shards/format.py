"""What a dataset of shards declares about itself: `shards.json` and the records in it.

    DIR/shards.json       token sets, buckets, shards; written last but one, read first
    DIR/index.bin         the sidecars of all shards, one after the other
    DIR/parts/*.tar       shards: KEY.<token set>.npy and KEY.json, adjacent, keys sorted
    DIR/tokenizer/        what made the codes; DIR/tokenizers/NAME/ those of further token sets
    DIR/_SUCCESS          the build is complete

Version 2. Unknown versions, kinds and dtypes are errors, never guesses; a dataset of version 1 is
brought forward by `tessera migrate`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from tokenizer.scales import Schedule
from tokenizer.settings import UserError

FORMAT_VERSION = 2
SHARDS_FILE = "shards.json"
INDEX_FILE = "index.bin"
SUCCESS_FILE = "_SUCCESS"
KINDS = ("codes", "latents", "frames")
DTYPES = ("uint16", "uint32", "float16", "uint8", "bits")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PRINTABLE = re.compile(r"[ -~]{1,1000}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_EXTENT = 1 << 20
_MAX_SCALES = 4096
_MAX_TOKENS = 1 << 31
_MAX_SAMPLES = 1 << 31
_MAX_BYTES = 1 << 62


class ShardError(UserError):
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


def tokenizer_folders(token_sets: Sequence[str]) -> dict[str, str]:
    """The folder of each token set's tokenizer in a dataset, by name; the primary set is first."""
    return {
        name: f"tokenizers/{name}" if place else "tokenizer"
        for place, name in enumerate(token_sets)
    }


def bucket_name(num_frames: int, height: int, width: int) -> str:
    return f"t{num_frames}_h{height}_w{width}"


def dump_declaration(
    token_sets: Sequence[TokenSet], buckets: Sequence[Bucket], shards: Sequence[ShardEntry]
) -> str:
    """The text of `shards.json`."""
    declaration = {
        "format_version": FORMAT_VERSION,
        "fingerprint": declared_fingerprint(token_sets, buckets, shards),
        "token_sets": [_token_set_row(each) for each in token_sets],
        "buckets": [_bucket_row(each) for each in buckets],
        "shards": [asdict(each) for each in shards],
    }
    return json.dumps(declaration, indent=1, sort_keys=True) + "\n"


def declared_fingerprint(
    token_sets: Sequence[TokenSet], buckets: Sequence[Bucket], shards: Sequence[ShardEntry]
) -> str:
    """sha256 of what a dataset is: token sets, buckets, and the shards' contents in order."""
    identity = [
        [_token_set_row(each) for each in token_sets],
        [_bucket_row(each) for each in buckets],
        [[each.split, each.bucket, each.sha256] for each in shards],
    ]
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def parse_declaration(
    text: str | bytes, where: str
) -> tuple[str, list[TokenSet], list[Bucket], list[ShardEntry]]:
    """(fingerprint, token sets, buckets, shards) of a `shards.json`; raises ShardError.

    Every value is checked: nothing in it can lead out of the folder, and the fingerprint is that
    of what it declares.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        values = json.loads(text, parse_constant=_no_number)
        version = values["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise ShardError(
                f"{where}: format version {str(version)[:20]}; this code reads {FORMAT_VERSION} "
                "(`tessera migrate` brings older ones forward)"
            )
        sets = [_token_set(row, where) for row in _rows(values, "token_sets")]
        buckets = [_bucket(row) for row in _rows(values, "buckets")]
        shards = [_shard(row, where) for row in _rows(values, "shards")]
        _check_names("token set", [each.name for each in sets])
        _check_names("bucket", [each.name for each in buckets])
        _check_names("shard", [each.path for each in shards])
        known = {each.name for each in buckets}
        if not sets or any(each.bucket not in known for each in shards):
            raise ValueError("no token set, or a shard of an undeclared bucket")
        fingerprint = values["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{where}: not a valid shard list ({_brief(error)})") from None
    if fingerprint != declared_fingerprint(sets, buckets, shards):
        raise ShardError(
            f"{where}: its fingerprint is not that of what it declares; was it edited? "
            "`tessera build` writes it again"
        )
    return fingerprint, sets, buckets, shards


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8."""
    return _CANONICAL.encode(value).encode()


def _token_set_row(token_set: TokenSet) -> dict[str, Any]:
    return asdict(token_set) | {"bits_per_code": token_set.bits_per_code}


def _bucket_row(bucket: Bucket) -> dict[str, Any]:
    return {
        "name": bucket.name,
        "num_frames": bucket.num_frames,
        "height": bucket.height,
        "width": bucket.width,
        "schedule": bucket.schedule.to_list() if bucket.schedule else None,
        "schedules": {name: each.to_list() for name, each in bucket.schedules.items()},
    }


def _token_set(row: Any, where: str) -> TokenSet:
    for name, known in (("kind", KINDS), ("dtype", DTYPES)):
        if row[name] not in known:
            known_names = ", ".join(known)
            raise ShardError(f"{where}: unknown {name} {_brief(row[name])}; known: {known_names}")
    _check_fields(row, TokenSet, "bits_per_code")
    size, tokenizer = row["codebook_size"], row["tokenizer"]
    if tokenizer is not None:
        _text(row, "tokenizer", _PRINTABLE)
    token_set = TokenSet(
        name=_text(row, "name", _NAME),
        kind=row["kind"],
        dtype=row["dtype"],
        codebook_size=None if size is None else _integer(row, "codebook_size", 1, 1 << 32),
        tokenizer=tokenizer,
    )
    if token_set.dtype == "bits" and not token_set.bits_per_code:
        raise ValueError("packed codes need a codebook of at least 2 codes")
    if row["bits_per_code"] != token_set.bits_per_code:
        raise ValueError(f"bits_per_code is {_brief(row['bits_per_code'])}")
    return token_set


def _bucket(row: Any) -> Bucket:
    _check_fields(row, Bucket)
    further = row["schedules"]
    if not isinstance(further, dict) or not all(_NAME.fullmatch(name) for name in further):
        raise ValueError("schedules must be an object of token sets")
    return Bucket(
        name=_text(row, "name", _NAME),
        num_frames=_integer(row, "num_frames", 1, _MAX_EXTENT),
        height=_integer(row, "height", 1, _MAX_EXTENT),
        width=_integer(row, "width", 1, _MAX_EXTENT),
        schedule=None if row["schedule"] is None else _schedule(row["schedule"]),
        schedules={name: _schedule(each) for name, each in further.items()},
    )


def _schedule(rows: Any) -> Schedule:
    if not isinstance(rows, list) or len(rows) > _MAX_SCALES:
        raise ValueError(f"a schedule is a list of at most {_MAX_SCALES} scales")
    schedule = Schedule.from_list(rows)
    if schedule.num_tokens > _MAX_TOKENS or schedule.num_latent_frames > _MAX_EXTENT:
        raise ValueError(f"a schedule of {schedule.num_tokens} tokens")
    return schedule


def _shard(row: Any, where: str) -> ShardEntry:
    _check_fields(row, ShardEntry)
    path = _text(row, "path", _PRINTABLE)
    parts = path.split("/")
    if ".." in parts or "" in parts or "." in parts or "\\" in path or ":" in parts[0]:
        raise ShardError(f"{where}: shard path {path!r} leaves the folder")
    return ShardEntry(
        path=path,
        sha256=_text(row, "sha256", _SHA256),
        size_bytes=_integer(row, "size_bytes", 1, _MAX_BYTES),
        num_samples=_integer(row, "num_samples", 1, _MAX_SAMPLES),
        bucket=_text(row, "bucket", _NAME),
        split=_text(row, "split", _NAME),
        index_offset=_integer(row, "index_offset", 0, _MAX_BYTES),
        index_bytes=_integer(row, "index_bytes", 0, _MAX_BYTES),
    )


def _rows(values: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(values[name], list):
        raise ValueError(f"{name} must be a list")
    return values[name]


def _check_fields(row: Any, cls: type, *further: str) -> None:
    expected = {each.name for each in fields(cls)} | set(further)
    if not isinstance(row, dict) or set(row) != expected:
        raise ValueError(f"{cls.__name__} has the fields {', '.join(sorted(expected))}")


def _check_names(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"a {what} is declared twice")


def _integer(row: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = row[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {_brief(value)}")
    return value


def _text(row: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = row[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{name} is {_brief(value)}")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _brief(value: object) -> str:
    """One short line for a value that may be anything."""
    text = str(value) if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= 120 and text.isprintable() else ascii(text[:120])
