"""Reuse: what earlier commits hold that need not be made again, here or in other datasets.

    keys = CodeKeys(clips, job.code_key, makings)
    known = find_codes([store, *others], keys)         # code key -> where its array lies
    scans = find_scans([store, *others], fingerprint, source_ids)

A code key covers the clip, its preprocessing and the tokenizer, so an array found under it is the
array that encoding would give. Arrays are copied byte for byte, checked against their crc32.
A sidecar has the key of a sample's primary array; the keys of its further arrays follow from how
they were made, which the shard's commit says.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from pipeline.annotate import DEATHS, ScanPlace
from pipeline.clip import Clip
from pipeline.commit import Store
from pipeline.shards.format import ShardError, canonical_json
from pipeline.shards.sidecar import code_key_words, parse_sidecar
from pipeline.storage import open_storage
from tokenizer.settings import UserError

_THREADS = 8  # commits and sidecars read at a time: they wait for the store, not for the processor


@dataclass(frozen=True)
class CodePlace:
    """Where an array lies: an `.npy` payload of a shard."""

    root: str
    path: str
    offset: int
    length: int
    crc32: int


class CodeKeys:
    """The code keys of some clips, under each of the makings that are wanted.

    `code_key(clip, making)` is `TokenizeJob.code_key`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        code_key: Callable[[Clip, str], str],
        makings: Collection[str],
    ) -> None:
        self._clips = clips
        self._code_key = code_key
        self.makings = frozenset(makings)
        self._keys: dict[str, list[str]] = {}
        self._words: dict[tuple[str, ...], _Words] = {}

    def of(self, making: str) -> list[str]:
        """The key of each clip's array that was made so."""
        if making not in self._keys:
            self._keys[making] = [self._code_key(clip, making) for clip in self._clips]
        return self._keys[making]

    def primary(self) -> _Words:
        """What to look for in a sidecar: the wanted keys as they are."""
        if () not in self._words:
            keys = [key for making in sorted(self.makings) for key in self.of(making)]
            self._words[()] = _Words(keys, keys)
        return self._words[()]

    def further(self, primary: str, making: str) -> _Words:
        """The keys of arrays made so, beside primary arrays of another making."""
        if (primary, making) not in self._words:
            self._words[primary, making] = _Words(self.of(primary), self.of(making))
        return self._words[primary, making]


class _Words:
    """Wanted code keys, by the two words of the keys that lead to them in a sidecar."""

    def __init__(self, seen: Sequence[str], wanted: Sequence[str]) -> None:
        self.wanted = {code_key_words(key): other for key, other in zip(seen, wanted)}
        self.first = np.array([first for first, _ in self.wanted], dtype=np.uint64)


def find_codes(stores: Sequence[Store], keys: CodeKeys) -> dict[str, CodePlace]:
    """The places of the wanted arrays that are in some committed shard, by code key."""
    known: dict[str, CodePlace] = {}
    for store in stores:
        for result in _results(store, "tokenize-"):
            if result["parts"]:
                known |= _found(store, result, keys)
    return known


def find_failures(stores: Sequence[Store], fingerprint: str) -> dict[str, str]:
    """The error class of each clip that could not be decoded under this fingerprint.

    Without those for which a process died or time ran out: another time it may do.
    """
    return {
        clip_id: outcome.removeprefix("error:")
        for store in stores
        for result in _results(store, "tokenize-")
        if result["fingerprint"] == fingerprint
        for clip_id, outcome in result["failed"].items()
        if outcome not in DEATHS
    }


def why_unlike(store: Store, how: Mapping[str, Any]) -> str:
    """What the codes of a dataset were made with that differs from `how`, in words."""
    unlike = sorted(
        f"{name} {made[name]!r} (here {how[name]!r})"
        for made in {canonical_json(r["how"]): r["how"] for r in _tokenized(store)}.values()
        for name in how
        if name in made and made[name] != how[name]
    )
    if unlike:
        return f"its codes were made with {', '.join(unlike)}, and would differ in bits"
    return "none of its codes is of a clip of this build, cut and made in the same way"


def find_scans(
    stores: Sequence[Store], scan_fingerprint: str, source_ids: Iterable[str]
) -> dict[str, ScanPlace]:
    """Where the scans of these sources are, of those made in the same way."""
    wanted = set(source_ids)
    known: dict[str, ScanPlace] = {}
    for store in stores:
        for result in _results(store, "annotate-"):
            if result.get("scan_fingerprint") == scan_fingerprint:
                place = ScanPlace(store.root, result["parts"][0]["path"])
                known |= {source: place for source in result["scanned"] if source in wanted}
    return known


def earlier_stores(store: Store, roots: Sequence[str]) -> list[Store]:
    """The build's own history and the datasets to reuse; UserError when one is no dataset."""
    others = [Store(root) for root in roots]
    for other in others:
        if not other.committed():
            raise UserError(f"reuse: {other.root} has no commits; name folders that builds made")
    return [*others, store]


class CodeCopies:
    """Reads arrays from earlier shards, keeping the shards open."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[tuple[str, str], IO[bytes]] = {}

    def read(self, place: CodePlace) -> np.ndarray:
        """The array; UserError when its bytes are damaged or gone."""
        name = (place.root, place.path)
        try:
            if name not in self._files:
                file = open_storage(place.root).open(place.path)
                self._files[name] = self._stack.enter_context(file)
            self._files[name].seek(place.offset)
            payload = self._files[name].read(place.length)
        except OSError as error:
            raise UserError(f"{place.root}/{place.path}: cannot be read ({error})") from None
        if zlib.crc32(payload) != place.crc32:
            raise UserError(
                f"{place.root}/{place.path} at byte {place.offset}: damaged, so its codes cannot "
                f"be used again; `tessera verify {place.root} --repair` takes such shards out"
            )
        return np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)

    def __enter__(self) -> CodeCopies:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _tokenized(store: Store) -> Iterator[dict[str, Any]]:
    return (result for result in _results(store, "tokenize-") if "how" in result)


def _results(store: Store, prefix: str) -> Iterator[dict[str, Any]]:
    units = sorted(unit for unit in store.committed() if unit.startswith(prefix))
    with ThreadPoolExecutor(_THREADS) as pool:
        for record in pool.map(store.read, units):
            yield record["result"]


def _found(store: Store, result: dict[str, Any], keys: CodeKeys) -> dict[str, CodePlace]:
    tar, idx = result["parts"]
    where = f"{store.root}/{idx['path']}"
    primary = result["token_set"]["name"]
    makings = result.get("makings", {})
    looked_for = {primary: keys.primary()} | {
        name: keys.further(makings[primary], making)
        for name, making in makings.items()
        if name != primary and making in keys.makings
    }
    found: dict[str, CodePlace] = {}
    try:
        sidecar = parse_sidecar(store.storage.read(idx["path"]), where)
        columns = {name: sidecar.members.index(f"{name}.npy") for name in looked_for}
    except (FileNotFoundError, ShardError, ValueError):
        return {}  # swept away, damaged or of an older version: nothing to copy there
    for name, words in looked_for.items():
        rows = np.flatnonzero(np.isin(sidecar.samples["code_key"][:, 0], words.first))
        for row in rows.tolist():
            first, second = sidecar.samples["code_key"][row].tolist()
            key = words.wanted.get((first, second))
            if key is not None:
                offset, length, crc32 = sidecar.places[row, columns[name]].tolist()
                found[key] = CodePlace(store.root, tar["path"], offset, length, crc32)
    return found
