"""Originals: clips decoded once more from their source files, to look at.

    wanted = [Wanted(source_id, clip.request()), ...]
    for original in read_originals("runs/demo/data", wanted, seconds=30):
        original.frames          # uint8 [t, h, w, 3], or None and ...
        original.reason          # ... "gone", "changed", "out of reach", "out of time", "corrupt"

Files are looked up in `plan.parquet` and decoded in a process of their own, with the build's limits
and for a bounded time: a file that kills the decoder costs its own clips, and never the report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.decode import DecoderRecipe, resolve_library
from pipeline.decode.decoder import (
    ClipRequest,
    DecodeLimits,
    DecodeSettings,
)
from pipeline.feed import Chunk, Decoded, decode_alone, request_bytes
from pipeline.isolation import Expendable
from pipeline.shards.table import read_table
from pipeline.sources.location import facts_of, is_local_file
from pipeline.sources.media import Unreachable
from pipeline.storage import open_storage
from tokenizer.settings import UserError, from_dict

PLAN_FILE, CONFIG_FILE = "plan.parquet", "config.yaml"
MEMORY_BYTES = 4 << 30
_MAX_CLIP_BYTES = 1 << 30


@dataclass(frozen=True)
class Wanted:
    """A clip to decode, of a source by its id."""

    source_id: str
    request: ClipRequest


@dataclass(frozen=True)
class Original:
    """The frames uint8 [t, h, w, 3], or why there are none."""

    frames: np.ndarray | None
    reason: str


def read_originals(root: str | Path, wanted: Sequence[Wanted], *, seconds: float) -> list[Original]:
    """The clips in the order given; those that `seconds` did not suffice for have that reason."""
    locations, reasons = _locate(root, {each.source_id for each in wanted})
    found: dict[int, Original] = {}
    files: dict[str, list[int]] = {}
    for index, each in enumerate(wanted):
        if each.source_id in reasons:
            found[index] = Original(None, reasons[each.source_id])
        elif not 0 < request_bytes(each.request) <= _MAX_CLIP_BYTES:
            found[index] = Original(None, "too large")
        else:
            files.setdefault(locations[each.source_id], []).append(index)
    for indices in files.values():
        indices.sort(key=lambda index: wanted[index].request.start_pts)
    recipe = _decoder_recipe(root)
    deadline = time.monotonic() + seconds
    with Expendable(MEMORY_BYTES, recipe.preload()) as process:
        for location, indices in files.items():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            requests = tuple(wanted[index].request for index in indices)
            chunk = Chunk(location, wanted[indices[0]].source_id, requests, recipe)
            try:
                decoded = decode_alone(chunk, process, left)
            except Unreachable:
                decoded = Decoded((), "out of reach", 0)
            reason = "out of time" if decoded.error == "timeout" else decoded.error or "empty"
            frames = [*decoded.clips, *[None] * len(indices)]
            for index, clip in zip(indices, frames):
                found[index] = Original(clip, reason if clip is None else "")
    late = Original(None, "out of time")
    return [found.get(index, late) for index in range(len(wanted))]


def clip_request(row: Mapping[str, Any]) -> ClipRequest:
    """What to decode for a sample, from its metadata; UserError when that does not say."""
    try:
        start_pts, end_pts = row["span"]
        x, y, width, height = row["crop"]
        return ClipRequest(
            start_pts=int(start_pts),
            end_pts=int(end_pts),
            fps=float(row["fps"]),
            num_frames=int(row["num_frames"]),
            crop=(int(x), int(y), int(width), int(height)),
            height=int(row["height"]),
            width=int(row["width"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"sample {row.get('key')}: says not where it is from ({error!r})") from None


def _locate(root: str | Path, source_ids: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(location, or reason why there is none) by source id."""
    try:
        with open_storage(root).open(PLAN_FILE) as file:
            table = read_table(file)
        if "path" in table.schema.names:  # of a version that knew only local files
            table = table.rename_columns({"path": "location"})
        wanted = pc.is_in(table["source_id"], pa.array(sorted(source_ids), pa.string()))
        rows = table.filter(wanted).to_pylist()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return {}, dict.fromkeys(source_ids, f"unknown: no {PLAN_FILE}")
    locations: dict[str, str] = {}
    reasons = dict.fromkeys(source_ids, "gone")
    for row in rows:
        location, source_id = str(row["location"]), row["source_id"]
        try:
            facts = facts_of(location)
        except (OSError, UserError):
            continue
        is_same = facts.size_bytes in (None, row["size_bytes"])
        if not is_local_file(location):  # a tar has the size of its member in any case
            is_same = is_same and facts.stamp == row["stamp"]
        if not is_same:
            reasons[source_id] = "changed"
            continue
        locations.setdefault(source_id, location)
    return locations, {source: why for source, why in reasons.items() if source not in locations}


def _decoder_recipe(root: str | Path) -> DecoderRecipe:
    """The build's decoder; the default one where its config is not readable or not possible here.

    Damage ends a file: what comes before it is shown.
    """
    try:
        values = yaml.safe_load(open_storage(root).read(CONFIG_FILE))
        limits = from_dict(DecodeLimits, values.get("limits", {}), CONFIG_FILE)
        settings = from_dict(DecodeSettings, values.get("decode", {}), CONFIG_FILE)
        return DecoderRecipe(resolve_library(values.get("decoder", "pyav")), limits, settings)
    except (OSError, yaml.YAMLError, AttributeError, UserError):
        return DecoderRecipe("pyav", DecodeLimits(), DecodeSettings())
