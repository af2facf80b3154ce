"""Feed: the decoded frames of a unit's clips, in unit order, a few files ahead.

A *chunk* is a run of clips of one file; decoding it is one task. Whoever runs tasks (a plain loop,
Ray) maps chunks to results; the unit reads clips from them in order and never sees the difference.

A file that can only be decoded from its start would be decoded as many times as it has chunks. Its
chunks come one after the other, and a process that has decoded one keeps the file open: when it is
given the next, it goes on. In another process the next begins anew, with the same result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np

from pipeline.clip import Clip
from pipeline.decode import DecoderRecipe, open_decoder
from pipeline.decode.decoder import ClipRequest
from pipeline.decode.errors import DecodeError
from pipeline.isolation import Death, Expendable
from pipeline.plan import PlannedSource
from pipeline.sources.location import ending_of
from pipeline.sources.media import open_media

_MAX_CHUNK_BYTES = 64 << 20  # decoded frames that cross between processes in one piece
_JUMPING = frozenset((*(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"), ".mkv", ".webm"))
"""Endings of files in which a decoder jumps to a time. A wrong guess costs time, no more."""


@dataclass(frozen=True)
class Chunk:
    """Clips of one file to decode in one task; `stamp` is the file's when it was planned.

    `later` are the clips of the chunks that follow, where decoding them means to go on.
    """

    location: str
    source_id: str
    requests: tuple[ClipRequest, ...]
    recipe: DecoderRecipe
    stamp: str = ""
    later: tuple[ClipRequest, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(request_bytes(request) for request in self.requests)

    def singles(self) -> list[Chunk]:
        """A chunk for each clip."""
        return [
            replace(
                self,
                requests=(request,),
                later=(*self.requests[place:], *self.later) if self.later else (),
            )
            for place, request in enumerate(self.requests, 1)
        ]


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
    ends = _ends_of_files(clips)
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
            jumps = recipe.settings.strict and ending_of(file.location) in _JUMPING
            chunks.append(
                Chunk(
                    file.location,
                    file.source_id,
                    tuple(run),
                    recipe,
                    stamp=file.stamp,
                    later=() if jumps else tuple(requests[index + 1 : ends[index]]),
                )
            )
            run, run_bytes = [], 0
    return chunks


class _OpenFile(threading.local):
    """The chunk that was decoded last, where others go on from it, and the file, open."""

    last: tuple[Chunk, Iterator[np.ndarray]] | None = None


_OPEN = _OpenFile()


def decode_chunk(chunk: Chunk) -> Decoded:
    """Decodes a chunk in this process; clips that came before an error are kept."""
    kept, _OPEN.last = _OPEN.last, None
    if kept is not None and _follows(chunk, kept[0]):
        decoded = _decoded(chunk, kept[1])
        if decoded.error != "timeout":  # which what lay between the chunks counts for
            return decoded
    del kept
    return _decoded(chunk, _clips(chunk))


def _decoded(chunk: Chunk, clips: Iterator[np.ndarray]) -> Decoded:
    frames: list[np.ndarray] = []
    error = None
    try:
        for clip in islice(clips, len(chunk.requests)):
            frames.append(clip)
    except DecodeError as failure:
        error = failure.kind
    if chunk.later and len(frames) == len(chunk.requests):
        _OPEN.last = chunk, clips
    return Decoded(tuple(frames), error, os.getpid())


def _clips(chunk: Chunk) -> Iterator[np.ndarray]:
    """The clips of a chunk and of those that follow it."""
    decoder = open_decoder(*chunk.recipe)
    where = (chunk.location, chunk.recipe.limits, chunk.source_id, chunk.stamp)
    with open_media(*where) as media:
        yield from decoder.clips(media, chunk.requests + chunk.later)


def _follows(chunk: Chunk, before: Chunk) -> bool:
    same = replace(before, requests=chunk.requests, later=chunk.later)
    return chunk == same and before.later == chunk.requests + chunk.later


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


def _ends_of_files(clips: Sequence[Clip]) -> list[int]:
    """For each clip the place behind the last of those that follow it in the same file."""
    ends = [len(clips)] * len(clips)
    for index in range(len(clips) - 2, -1, -1):
        is_last = clips[index + 1].source_id != clips[index].source_id
        ends[index] = index + 1 if is_last else ends[index + 1]
    return ends


def request_bytes(request: ClipRequest) -> int:
    return request.num_frames * request.height * request.width * 3
