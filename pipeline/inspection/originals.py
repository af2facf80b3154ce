"""Originals: clips decoded once more from their source files, to look at.

    wanted = [Wanted(source_id, clip.request()), ...]
    for original in read_originals("runs/demo/data", wanted, seconds=30):
        original.frames          # uint8 [t, h, w, 3], or None and ...
        original.reason          # ... "gone", "changed", "out of time", "crashed", "corrupt"

Files are looked up in `plan.parquet` and decoded in a process of their own, with the build's limits
and for a bounded time: a file that kills the decoder costs its own clips, and never the report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.decode import open_decoder
from pipeline.decode.decoder import ClipRequest, DecodeError, DecodeLimits
from pipeline.feed import request_bytes
from pipeline.isolation import limit_memory
from pipeline.shards.table import read_table
from pipeline.sources.location import facts_of, is_local_file
from pipeline.sources.media import open_media
from pipeline.storage import open_storage
from tokenizer.settings import UserError, from_dict, to_dict

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
    decoder, limits = _decoder_settings(root)
    deadline = time.monotonic() + seconds
    waiting = list(files.items())
    while waiting and time.monotonic() < deadline:
        job = {
            "decoder": decoder,
            "limits": to_dict(limits),
            "files": [
                [location, [[index, asdict(wanted[index].request)] for index in indices]]
                for location, indices in waiting
            ],
        }
        for index, original in _decoded_elsewhere(job, wanted, deadline):
            found[index] = original
        missing = [(where, [i for i in indices if i not in found]) for where, indices in waiting]
        waiting = [(where, indices) for where, indices in missing if indices]
        if waiting and time.monotonic() < deadline:  # the process died, at the first of them
            _, indices = waiting.pop(0)
            found |= dict.fromkeys(indices, Original(None, "crashed"))
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


def _decoder_settings(root: str | Path) -> tuple[str, DecodeLimits]:
    """The build's decoder and its limits; the defaults where its config is not readable."""
    try:
        values = yaml.safe_load(open_storage(root).read(CONFIG_FILE))
        limits = from_dict(DecodeLimits, values.get("limits", {}), CONFIG_FILE)
        decoder = str(values.get("decoder", "pyav"))
        return decoder if decoder in ("pyav", "decord") else "pyav", limits
    except (OSError, yaml.YAMLError, AttributeError, UserError):
        return "pyav", DecodeLimits()


def _decoded_elsewhere(
    job: Mapping[str, Any], wanted: Sequence[Wanted], deadline: float
) -> Iterator[tuple[int, Original]]:
    """What a process decodes before it ends, however that is."""
    parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [parent, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.inspection.originals"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), process.kill)
    timer.start()
    try:
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        except BrokenPipeError:
            return
        yield from _received(process.stdout, wanted)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def _received(stream: IO[bytes], wanted: Sequence[Wanted]) -> Iterator[tuple[int, Original]]:
    """The records that `_serve` wrote; their sizes are known from the requests."""
    while line := stream.readline():
        record = json.loads(line)
        index = int(record["index"])
        if record["error"]:
            yield index, Original(None, str(record["error"]))
            continue
        request = wanted[index].request
        data = stream.read(request_bytes(request))
        if len(data) < request_bytes(request):
            return
        shape = (request.num_frames, request.height, request.width, 3)
        yield index, Original(np.frombuffer(data, np.uint8).reshape(shape), "")


def _serve(job: Mapping[str, Any], stream: IO[bytes]) -> None:
    """Decodes a job's files; per clip a line of JSON and, unless it says an error, the pixels."""
    limits = DecodeLimits(**job["limits"])
    decoder = open_decoder(job["decoder"], limits)
    for location, clips in job["files"]:
        indices = [index for index, _ in clips]
        requests = [ClipRequest(**row | {"crop": tuple(row["crop"])}) for _, row in clips]
        done, reason = 0, "empty"
        try:
            with open_media(location, limits) as media:
                for frames in decoder.clips(media, requests):
                    _send(stream, indices[done], None, [np.ascontiguousarray(frames).data])
                    done += 1
        except DecodeError as error:
            reason = error.kind
        for index in indices[done:]:
            _send(stream, index, reason, [])


def _send(stream: IO[bytes], index: int, error: str | None, payload: Iterable[Any]) -> None:
    stream.write(json.dumps({"index": index, "error": error}).encode() + b"\n")
    for data in payload:
        stream.write(data)
    stream.flush()


if __name__ == "__main__":
    limit_memory(MEMORY_BYTES)
    _serve(json.load(sys.stdin), sys.stdout.buffer)
