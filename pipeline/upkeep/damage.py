"""Damage: whether the bytes of a published part are those that were committed, and where not.

    problems = check_shard(store, shard, listed)

A part is hashed whole; a shard's sidecar is derived from its tar once more, so that every member,
key and crc32 is known to be where the sidecar says. What is wrong is named down to the byte.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.commit import Part, Store
from pipeline.shards.format import ShardError, TokenSet
from pipeline.shards.sidecar import Sidecar, clip_bytes, parse_sidecar
from pipeline.shards.table import read_table
from pipeline.shards.tarindex import TarIndex, index_tar
from pipeline.storage import local_file
from tokenizer.scales import Schedule

MAX_NAMED_MEMBERS = 5
"""Damaged members that are listed one by one; the rest are counted."""

_AT_BYTE = re.compile(r" at byte (\d+)")


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """Something that is not as it was committed; `kind` is damaged, missing, foreign or wrong."""

    file: str
    kind: str
    what: str
    remedy: str
    at_byte: int | None = None
    unit: str | None = None
    """The commit to take out so that a build makes the file again."""

    def __str__(self) -> str:
        place = self.file if self.at_byte is None else f"{self.file} at byte {self.at_byte}"
        return f"{place}: {self.kind}: {self.what}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class ArrayClaim:
    """What is said of the arrays of one token set in a shard."""

    member: str
    dtype: str
    num_tokens: int | None

    @classmethod
    def of(cls, token_set: TokenSet, schedule: Schedule | None) -> ArrayClaim:
        is_packed = token_set.dtype == "bits"
        return cls(
            member=token_set.member,
            dtype="uint8" if is_packed else token_set.dtype,
            num_tokens=None if is_packed or schedule is None else schedule.num_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class ShardClaim:
    """What a commit, or `shards.json` where there are no commits, says of a shard."""

    unit: str | None
    tar: Part
    sidecar: Part
    num_samples: int
    arrays: tuple[ArrayClaim, ...]


@dataclass(frozen=True)
class ListedSamples:
    """What the manifest says of a shard's samples in row order: digests, uint8 [n, 16] each."""

    keys: np.ndarray
    code_keys: np.ndarray


def check_part(store: Store, part: Part, unit: str | None) -> list[Problem]:
    """Size and hash of a published file, and that it can be read as what its name promises."""
    try:
        data = store.storage.read(part.path)
    except FileNotFoundError:
        return [_problem(store, part.path, "missing", "a commit names it", unit)]
    except OSError as error:
        return [_problem(store, part.path, "damaged", f"cannot be read ({error})", unit)]
    if problem := _hash_problem(store, part, len(data), hashlib.sha256(data).hexdigest(), unit):
        return [problem]
    try:
        if part.path.endswith(".parquet"):
            read_table(data)
        elif part.path.endswith(".json"):
            json.loads(data)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        return [_problem(store, part.path, "damaged", f"cannot be read ({error})", unit)]
    return []


def check_shard(store: Store, claim: ShardClaim, listed: ListedSamples | None) -> list[Problem]:
    """A tar and its sidecar against their claim, each other, and the manifest's rows."""
    problems = check_part(store, claim.sidecar, claim.unit)
    sidecar = None
    if not problems:
        try:
            data = store.storage.read(claim.sidecar.path)
            sidecar = parse_sidecar(data, claim.sidecar.path)
        except ShardError as error:
            problems.append(_of_error(store, claim.sidecar.path, error, claim.unit))
    try:
        with local_file(store.storage, claim.tar.path) as path:
            problems += _check_tar(store, claim, path, sidecar, listed)
    except FileNotFoundError:
        problems.append(_problem(store, claim.tar.path, "missing", "a commit names it", claim.unit))
    except OSError as error:
        what = f"cannot be read ({error})"
        problems.append(_problem(store, claim.tar.path, "damaged", what, claim.unit))
    return problems


def _check_tar(
    store: Store,
    claim: ShardClaim,
    path: Path,
    sidecar: Sidecar | None,
    listed: ListedSamples | None,
) -> list[Problem]:
    name, unit = claim.tar.path, claim.unit
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if problem := _hash_problem(store, claim.tar, path.stat().st_size, digest, unit):
        found = _located(store, path, claim, sidecar)
        if not found and sidecar is not None:
            problem = replace(problem, what=f"{problem.what}, though every member is sound")
        return found or [problem]
    try:
        index = index_tar(path)
    except ShardError as error:
        return [_of_error(store, name, error, unit, path)]
    problems = []
    if sidecar is not None:
        problems = [
            _problem(store, claim.sidecar.path, "wrong", what, unit)
            for what in _disagreements(index, sidecar, names_clips=unit is not None)
        ]
    for what in _broken_claims(claim, index, sidecar, listed):
        problems.append(_problem(store, name, "wrong", what, unit))
    return problems


def _located(store: Store, path: Path, claim: ShardClaim, sidecar: Sidecar | None) -> list[Problem]:
    """The members whose crc32 is not that of the sidecar, or where the tar is unsound."""
    problems = []
    count = 0
    if sidecar is not None:
        with open(path, "rb") as file:
            for row, places in enumerate(sidecar.places.tolist()):
                for member, (offset, length, crc32) in zip(sidecar.members, places):
                    file.seek(offset)
                    if zlib.crc32(file.read(length)) == crc32:
                        continue
                    count += 1
                    if count > MAX_NAMED_MEMBERS:
                        continue
                    file.seek(max(0, offset - 512))
                    key = file.read(100).split(b"\0")[0].decode("ascii", "replace")
                    what = f"row {row}, {key.partition('.')[0]!r}: {member} (crc32)"
                    problems.append(
                        _problem(store, claim.tar.path, "damaged", what, claim.unit, offset)
                    )
    if count > MAX_NAMED_MEMBERS:
        what = f"{count - MAX_NAMED_MEMBERS} more members (crc32)"
        problems.append(_problem(store, claim.tar.path, "damaged", what, claim.unit))
    if not problems:
        try:
            index_tar(path, crc=False)
        except ShardError as error:
            problems.append(_of_error(store, claim.tar.path, error, claim.unit, path))
    return problems


def _disagreements(index: TarIndex, sidecar: Sidecar, names_clips: bool) -> list[str]:
    """What the tar's own headers and payloads say otherwise than its sidecar.

    `names_clips` says that the keys are those of a build: `<clip>_<view>`.
    """
    derived = index.sidecar
    if derived.members != sidecar.members or len(derived.samples) != len(sidecar.samples):
        found = f"{len(derived.samples)} samples of {', '.join(derived.members)}"
        return [f"the tar has {found}, not {len(sidecar.samples)} of {', '.join(sidecar.members)}"]
    facts = {
        "places": (derived.places, sidecar.places),
        "keys": (derived.samples["key"], sidecar.samples["key"]),
    }
    if names_clips:
        clips = b"".join(clip_bytes(key.rpartition("_")[0]) for key in index.keys)
        facts["clips"] = (np.frombuffer(clips, dtype="<u8"), sidecar.samples["clip"])
    if derived.tar_bytes != sidecar.tar_bytes:
        return [f"the tar has {derived.tar_bytes} bytes, not {sidecar.tar_bytes}"]
    wrong = []
    for fact, (of_tar, of_sidecar) in facts.items():
        differs = of_tar != of_sidecar
        rows = np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1))
        if rows.size:
            wrong.append(f"{fact} of {len(rows)} rows, first {rows[0]}, are not those of the tar")
    return wrong


def _broken_claims(
    claim: ShardClaim, index: TarIndex, sidecar: Sidecar | None, listed: ListedSamples | None
) -> list[str]:
    """What commit and manifest say otherwise than the tar."""
    wrong = []
    if len(index.keys) != claim.num_samples:
        wrong.append(f"{len(index.keys)} samples, its commit says {claim.num_samples}")
    for said in claim.arrays:
        arrays = index.arrays.get(said.member)
        if arrays is None or (arrays.header_of < 0).any():
            wrong.append(f"not every sample has {said.member}")
            continue
        found = {str(header.dtype) for header in arrays.headers}
        if found != {said.dtype}:
            wrong.append(f"{said.member} of {', '.join(sorted(found))}, not {said.dtype}")
        shapes = {header.shape for header in arrays.headers}
        if said.num_tokens is not None and shapes != {(said.num_tokens,)}:
            wrong.append(f"{said.member} of shapes {sorted(shapes)}, not ({said.num_tokens},)")
    if listed is not None:
        if not np.array_equal(listed.keys, _digests(index.sidecar.samples["key"])):
            wrong.append("manifest.parquet lists other samples for it, or in another order")
        elif sidecar is not None and not np.array_equal(
            listed.code_keys, _digests(sidecar.samples["code_key"])
        ):
            wrong.append("its code keys are not those of manifest.parquet")
    return wrong


def _digests(words: np.ndarray) -> np.ndarray:
    """Two words a row as bytes: uint8 [n, 16]."""
    return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), 16)


def _hash_problem(
    store: Store, part: Part, size_bytes: int, sha256: str, unit: str | None
) -> Problem | None:
    if sha256 == part.sha256 and size_bytes == part.size_bytes:
        return None
    if unit is not None and sha256[:12] in part.path:
        what = f"it says of {part.path} what its name and bytes do not"
        return _problem(store, f"_commits/{unit}.json", "damaged", what, unit)
    what = f"{size_bytes} bytes of sha256 {sha256[:12]}"
    if size_bytes != part.size_bytes:
        what += f", not {part.size_bytes}"
    return _problem(store, part.path, "damaged", f"{what}; not what was committed", unit)


def _of_error(
    store: Store, name: str, error: ShardError, unit: str | None, path: Path | None = None
) -> Problem:
    text = str(error).removeprefix(str(path or name))
    match = _AT_BYTE.match(text)
    what = text[match.end() if match else 0 :].lstrip(": ")
    return _problem(store, name, "damaged", what, unit, int(match[1]) if match else None)


def _problem(
    store: Store, file: str, kind: str, what: str, unit: str | None, at_byte: int | None = None
) -> Problem:
    remedy = (
        f"`tessera verify {store.root} --repair`, then `tessera build`, make it again"
        if unit
        else "copy it from where the dataset came from"
    )
    return Problem(file=file, kind=kind, what=what, remedy=remedy, at_byte=at_byte, unit=unit)
