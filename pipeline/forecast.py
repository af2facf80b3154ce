"""Forecast: what a build will cost, from a few of its files, measured here.

    tessera build build.yaml --dry-run 20

The files are chosen by hash, so that the same ones are taken again; they are identified, annotated
and, if there is a tokenizer, decoded and encoded in this process (by each tokenizer, when there are
further token sets), and nothing is written. What they
cost is scaled to the whole collection by the bytes of the files, which say more of a video's length
than the number of files does. What it does not see: the network, a cluster's start, and a machine
that is faster or slower than this one.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.annotate import AnnotateJob
from pipeline.clip import KEPT, Clip, make_buckets
from pipeline.config import BuildConfig, decoder_recipe, parse_bucket
from pipeline.encode import Encoder, EncoderRecipe
from pipeline.feed import decode_chunk, make_chunks
from pipeline.plan import PlannedSource, planned
from pipeline.quantities import counted, duration, size
from pipeline.select import select_clips
from pipeline.shards.format import canonical_json
from pipeline.sources.content import identified
from pipeline.sources.file import SourceFile
from pipeline.sources.location import is_url
from pipeline.sources.looking import Known, unpacked

MAX_CLIPS_ENCODED = 256
_MEMBER_BYTES = 512 + 256  # in a tar: a header, and the padding on average


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Measured on `num_sampled` of `num_files` files, and scaled to all of them by bytes."""

    num_files: int
    num_sampled: int
    total_bytes: int
    sampled_bytes: int
    outcomes: dict[str, int]
    """Of the sampled files' clips."""
    num_clips: int
    """Kept clips expected of all files."""
    cpu_hours: dict[str, float]
    """By stage, over all files."""
    wall_hours: dict[str, float]
    """By stage, with the config's CPUs and encoders; decoding and encoding go on side by side."""
    bottleneck: str
    shard_bytes: int
    num_shards: int


def forecast(
    config: BuildConfig,
    files: Sequence[SourceFile],
    num_sampled: int,
    recipes: Sequence[EncoderRecipe],
    num_cpus: int,
) -> Forecast:
    """Measures `num_sampled` files; without `recipes` encoding is left out."""
    files = _unpacked(files, config, remote=False)  # of tars behind URLs, the chosen ones
    chosen = _chosen(_unpacked(_chosen(files, num_sampled), config, remote=True), num_sampled)
    seconds: dict[str, float] = {}
    rows = _measured(seconds, "plan", lambda: _planned(chosen, config))
    sources = [row for row in rows if not row.skipped]
    unread = Counter(row.outcome for row in rows if row.skipped)
    job = AnnotateJob(config, config.out)
    scans = _measured(seconds, "annotate", lambda: [job.scan(source) for source in sources])
    clips = select_clips([clip for scan in scans for clip in scan], config.select)
    kept = [clip for clip in clips if clip.outcome == KEPT]
    sample_bytes, encoded = 0.0, 1.0
    if recipes and kept:
        encoders = [recipe.load() for recipe in recipes]
        tried = kept[:MAX_CLIPS_ENCODED]
        encoded = len(kept) / len(tried)
        sample_bytes = _encode(config, sources, tried, encoders, seconds)
    total_bytes = sum(file.size_bytes or 0 for file in files)
    sampled_bytes = sum(file.size_bytes or 0 for file in chosen)
    scale = total_bytes / max(sampled_bytes, 1)
    hours = {
        stage: spent * scale * (encoded if stage in ("decode", "encode") else 1.0) / 3600
        for stage, spent in seconds.items()
    }
    wall = {
        stage: spent / (config.tokenize.num_encoders if stage == "encode" else num_cpus)
        for stage, spent in hours.items()
    }
    num_clips = round(len(kept) * scale)
    groups = {(clip.split, clip.bucket) for clip in kept}
    return Forecast(
        num_files=len(files),
        num_sampled=len(chosen),
        total_bytes=total_bytes,
        sampled_bytes=sampled_bytes,
        outcomes=dict((Counter(clip.outcome for clip in clips) + unread).most_common()),
        num_clips=num_clips,
        cpu_hours=hours,
        wall_hours=wall,
        bottleneck=max(wall, key=lambda stage: wall[stage]),
        shard_bytes=round(num_clips * sample_bytes),
        num_shards=math.ceil(num_clips / config.tokenize.samples_per_shard)
        + max(len(groups) - 1, 0),
    )


def forecast_lines(made: Forecast, config: BuildConfig) -> list[str]:
    """The forecast as text."""
    listed = ", ".join(f"{name} {count:,}" for name, count in made.outcomes.items())
    lines = [
        f"measured {made.num_sampled:,} of {counted(made.num_files, 'file')} "
        f"({size(made.sampled_bytes)} of {size(made.total_bytes)}): {listed or 'no clips'}",
        f"expected: {counted(made.num_clips, 'sample')} in {counted(made.num_shards, 'shard')}"
        + (f", {size(made.shard_bytes)}" if made.shard_bytes else ""),
        f"{'stage':<10}{'CPU time':>12}{'wall time':>12}",
    ]
    for stage, hours in made.cpu_hours.items():
        mark = "  <- bottleneck" if stage == made.bottleneck else ""
        cpu, wall = duration(3600 * hours), duration(3600 * made.wall_hours[stage])
        lines.append(f"{stage:<10}{cpu:>12}{wall:>12}{mark}")
    if "encode" not in made.cpu_hours:
        lines.append("no tokenizer yet: decoding and encoding of the kept clips are not in it")
    else:
        lines.append(
            f"decoding and encoding go on side by side, {config.tokenize.num_encoders} encoder(s); "
            "a GPU's encoder is measured on the device that tokenize.device names"
        )
    return lines


def _chosen(files: Sequence[SourceFile], num_sampled: int) -> list[SourceFile]:
    by_hash = sorted(files, key=lambda file: hashlib.sha256(file.uri.encode()).digest())
    return by_hash[:num_sampled]


def _unpacked(
    files: Sequence[SourceFile], config: BuildConfig, *, remote: bool
) -> list[SourceFile]:
    """The files, with what is in them in place of tars that are behind URLs, or that are not."""
    found: list[SourceFile] = []
    for file in files:
        is_meant = is_url(file.location) == remote
        found += unpacked(file, config.limits, Known([])) if is_meant else [file]
    return found


def _planned(files: Sequence[SourceFile], config: BuildConfig) -> list[PlannedSource]:
    """The files as the build would plan them."""
    return [planned(identified(file, config.limits)) for file in files]


def _encode(
    config: BuildConfig,
    sources: Sequence[PlannedSource],
    clips: Sequence[Clip],
    encoders: Sequence[Encoder],
    seconds: dict[str, float],
) -> float:
    """Decodes and encodes clips, adds what it takes to `seconds`; bytes of a sample in a shard."""
    files = {source.source_id: source for source in sources}
    by_bucket: dict[str, list[np.ndarray]] = {}
    chunks = make_chunks(
        clips,
        [clip.request() for clip in clips],
        files,
        decoder_recipe(config),
        config.tokenize.clips_per_decode,
    )
    names = iter([clip.bucket for clip in clips])
    for chunk in chunks:
        decoded = _measured(seconds, "decode", lambda: decode_chunk(chunk))  # noqa: B023
        for place in range(len(chunk.requests)):
            name = next(names)
            if place < len(decoded.clips):
                by_bucket.setdefault(name, []).append(decoded.clips[place])
    buckets = {each.name: each for each in make_buckets(map(parse_bucket, config.clips.buckets))}
    on_cpu = config.tokenize.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter  # a GPU works while we wait
    code_bytes = 0
    for name, frames in by_bucket.items():
        for encoder in encoders:
            encoder.schedule(buckets[name])
            for start in range(0, len(frames), encoder.batch_size):
                batch = np.stack(frames[start : start + encoder.batch_size])
                encode = partial(encoder.encode, batch)
                code_bytes += _measured(seconds, "encode", encode, clock).nbytes
    metadata = sum(len(canonical_json(clip.metadata())) for clip in clips)
    return (code_bytes + metadata) / len(clips) + (1 + len(encoders)) * _MEMBER_BYTES


def _measured(
    seconds: dict[str, float],
    stage: str,
    work: Callable[[], Any],
    clock: Callable[[], float] = time.process_time,
) -> Any:
    """Runs the work and adds the time it took by the clock."""
    started = clock()
    try:
        return work()
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + clock() - started
