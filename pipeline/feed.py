"""Feed: the decoded frames of a unit's clips, in unit order, a few files ahead.

A *chunk* is a run of clips of one file; decoding it is one task. Whoever runs tasks (a plain loop,
Ray) maps chunks to results; the unit reads clips from them in order and never sees the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pipeline.clip import Clip
from pipeline.decode import DecoderRecipe, open_decoder
from pipeline.decode.decoder import ClipRequest
from pipeline.decode.errors import DecodeError
from pipeline.isolation import Death, Expendable
from pipeline.plan import PlannedSource
from pipeline.sources.media import open_media

_MAX_CHUNK_BYTES = 64 << 20  # decoded frames that cross between processes in one piece


@dataclass(frozen=True)
class Chunk:
    """Clips of one file to decode in one task; `stamp` is the file's when it was planned."""

    location: str
    source_id: str
    requests: tuple[ClipRequest, ...]
    recipe: DecoderRecipe
    stamp: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(request_bytes(request) for request in self.requests)

    def singles(self) -> list[Chunk]:
        """A chunk for each clip."""
        return [replace(self, requests=(request,)) for request in self.requests]


@dataclass(frozen=True)
class Decoded:
    """A chunk's frames, one array [t, h, w, 3] a clip, or the error class that ended it."""

    clips: tuple[np.ndarray, ...]
    error: str | None
    pid: int


def make_chunks(
    clips: Sequence[Clip],
    requests: Sequence[ClipRequest],
    files: Mapping[str, PlannedSource],
    recipe: DecoderRecipe,
    clips_per_chunk: int,
) -> list[Chunk]:
    """Consecutive clips of one file, at most `clips_per_chunk` and 64 MiB of frames a chunk."""
    chunks: list[Chunk] = []
    run: list[ClipRequest] = []
    run_bytes = 0
    for index, (clip, request) in enumerate(zip(clips, requests)):
        run.append(request)
        run_bytes += request_bytes(request)
        following = clips[index + 1] if index + 1 < len(clips) else None
        if (
            following is None
            or following.source_id != clip.source_id
            or len(run) == clips_per_chunk
            or run_bytes + request_bytes(requests[index + 1]) > _MAX_CHUNK_BYTES
        ):
            file = files[clip.source_id]
            chunks.append(
                Chunk(file.location, file.source_id, tuple(run), recipe, stamp=file.stamp)
            )
            run, run_bytes = [], 0
    return chunks


def decode_chunk(chunk: Chunk) -> Decoded:
    """Decodes a chunk in this process; clips that came before an error are kept."""
    frames: list[np.ndarray] = []
    error = None
    try:
        decoder = open_decoder(*chunk.recipe)
        where = (chunk.location, chunk.recipe.limits, chunk.source_id, chunk.stamp)
        with open_media(*where) as media:
            for clip in decoder.clips(media, chunk.requests):
                frames.append(clip)
    except DecodeError as failure:
        error = failure.kind
    return Decoded(tuple(frames), error, os.getpid())


def decode_alone(chunk: Chunk, process: Expendable, seconds: float) -> Decoded:
    """Decodes a chunk in a process that may die of it; then clip by clip, up to the first."""
    decoded = process.call(partial(decode_chunk, chunk), seconds=seconds)
    if not isinstance(decoded, Death):
        return decoded
    clips: list[np.ndarray] = []
    for single in chunk.singles():
        decoded = process.call(partial(decode_chunk, single), seconds=seconds)
        if isinstance(decoded, Death):
            return Decoded(tuple(clips), decoded.kind, 0)
        clips += decoded.clips
        if decoded.error is not None:
            return Decoded(tuple(clips), decoded.error, decoded.pid)
    return Decoded(tuple(clips), None, 0)


def clips_in_order(
    chunks: Sequence[Chunk], results: Iterator[Decoded]
) -> Iterator[tuple[np.ndarray | None, str | None, int]]:
    """(frames, None, decoder pid), or (None, error class, pid), for each clip of the chunks."""
    for chunk, decoded in zip(chunks, results):
        for index in range(len(chunk.requests)):
            if index < len(decoded.clips):
                yield decoded.clips[index], None, decoded.pid
            else:
                yield None, decoded.error or "empty", decoded.pid


def request_bytes(request: ClipRequest) -> int:
    return request.num_frames * request.height * request.width * 3
