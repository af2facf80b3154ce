"""Excerpt: a committed shard made anew with some of its samples. Nothing is decoded or encoded.

    unit = excerpt(source, "tokenize-1f0c9a...", rows=[0, 3], failed={}, target=store)

Keys, arrays and metadata are copied and checked against their crc32; the new shard has a commit of
its own, whose unit is named by the old one and the rows.
"""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from pipeline.annotate import accounts, worker_facts
from pipeline.commit import Store, unit_id
from pipeline.shard_draft import add_to_tally, token_sets_of
from pipeline.shards.sidecar import Sidecar, parse_sidecar
from pipeline.shards.writer import ShardWriter
from pipeline.statistics import Tally
from tokenizer.settings import UserError

EXCERPT_VERSION = 1  # raise it when the same rows give other bytes


def excerpt(
    source: Store, unit: str, rows: Sequence[int], failed: Mapping[str, str], target: Store
) -> str:
    """Commits these rows of a unit's shard to `target`; returns the new unit.

    `failed` is the part of the unit's errors that goes along. UserError when the shard is damaged.
    """
    result = source.read(unit)["result"]
    inputs = [EXCERPT_VERSION, unit, list(rows), dict(sorted(failed.items()))]
    identity = unit_id("tokenize", inputs, result["fingerprint"])
    if target.has(identity):
        return identity
    tally = Tally()
    parts = []
    if rows:
        name = f"{result['split']}-{result['bucket']}-{identity.removeprefix('tokenize-')[:12]}"
        with target.draft(name) as draft:
            sidecar = _copy(source, result, rows, draft.stream, tally)
            part = draft.publish(".tar")
            parts = [part, target.write_beside(part, ".idx", sidecar)]
    outcomes = Counter(failed.values())
    if rows:
        outcomes["kept"] = len(rows)
    for outcome, count in sorted(outcomes.items()):
        tally.add_outcome(outcome, count)
    changed = {
        "parts": [asdict(each) for each in parts],
        "num_samples": len(rows),
        "failed": dict(failed),
        **accounts(outcomes),
        "statistics": tally.to_json(),
    }
    target.commit(identity, {**result, **changed}, worker_facts())
    return identity


def _copy(
    source: Store, result: Mapping[str, Any], rows: Sequence[int], stream: IO[bytes], tally: Tally
) -> bytes:
    """Writes the samples in the order of `rows`; returns the sidecar."""
    tar, idx = (each["path"] for each in result["parts"])
    where = f"{source.root}/{idx}"
    sidecar = parse_sidecar(source.storage.read(idx), where)
    members = tuple(each for each in sidecar.members if each != "json")
    token_sets = token_sets_of(result)
    writer = ShardWriter(stream, members)
    with source.storage.open(tar) as file:
        for row in rows:
            payloads = _payloads(f"{source.root}/{tar}", file, sidecar, row)
            metadata = json.loads(payloads["json"])
            arrays = {
                each: np.lib.format.read_array(io.BytesIO(payloads[each]), allow_pickle=False)
                for each in members
            }
            code_key = sidecar.samples["code_key"][row].tobytes().hex()
            clip = metadata["key"].rpartition("_")[0]
            writer.write(metadata["key"], arrays, metadata, clip=clip, code_key=code_key)
            by_set = {each.name: arrays[each.member] for each, _ in token_sets}
            add_to_tally(tally, metadata, by_set, token_sets)
    return writer.close()


def _payloads(where: str, file: IO[bytes], sidecar: Sidecar, row: int) -> dict[str, bytes]:
    payloads = {}
    for member, place in zip(sidecar.members, sidecar.places[row]):
        offset, length, crc32 = place.tolist()
        file.seek(offset)
        payloads[member] = file.read(length)
        if zlib.crc32(payloads[member]) != crc32:
            raise UserError(f"{where} at byte {offset}: damaged (crc32); see `tessera verify`")
    return payloads
