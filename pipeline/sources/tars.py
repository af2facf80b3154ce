"""Tars of videos or images in WebDataset's layout: KEY.mp4 beside KEY.json, KEY.txt or KEY.cls.

Nothing is unpacked: a member is a location with its place in the tar. A tar behind a URL comes once
through a temporary file, where all its members are identified; later its bytes are read by range.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.captions import combined_sha256, find_sidecars
from pipeline.decode.decoder import DecodeLimits
from pipeline.shards.format import ShardError
from pipeline.shards.tarwalk import TarFile, open_tar, walk_tar
from pipeline.sources.endings import media_kind
from pipeline.sources.file import SourceFile
from pipeline.sources.location import Member, fetched, is_url, member_stamp, path_of
from pipeline.sources.urls import shown


def list_tar(
    file: SourceFile, limits: DecodeLimits, known: Mapping[str, Sequence[SourceFile]]
) -> list[SourceFile]:
    """The videos and images in a tar, in its order.

    `known` has what was found in tars before; one that is unchanged since is not read again.
    Raises OSError for a tar that cannot be read, ShardError for one that is not sound.
    """
    tar, stamp = file.location, member_stamp(file.size_bytes or 0, file.stamp)
    earlier = [each for each in known.get(tar, ()) if stamp and each.stamp == stamp]
    if earlier:
        return earlier
    with _opened(tar, limits) as opened:
        return list(_members(tar, stamp, opened, with_content=is_url(tar)))


def _members(tar: str, stamp: str, opened: TarFile, with_content: bool) -> Iterator[SourceFile]:
    walk = walk_tar(opened)
    places = {
        name.removeprefix("./"): Member(tar, int(offset), int(length), _ending(name))
        for name, offset, length in zip(walk.names, walk.offsets, walk.lengths)
    }
    for name, member in places.items():
        kind = media_kind(name)
        if kind is None or any(part.startswith(".") for part in name.split("/")):
            continue
        sidecars = [places[each] for each in find_sidecars(name, places.__contains__)]
        known = {}
        if with_content:
            known["source_id"] = _sha256(opened, member)
            if sidecars:
                known["sidecar_sha256"] = combined_sha256(
                    [_sha256(opened, each) for each in sidecars]
                )
        yield SourceFile(
            uri=name,
            location=member.location,
            kind=kind,
            size_bytes=member.size_bytes,
            stamp=stamp,
            sidecars=tuple(each.location for each in sidecars),
            sidecar_stamp=stamp if sidecars else "",
            **known,
        )


@contextmanager
def _opened(tar: str, limits: DecodeLimits) -> Iterator[TarFile]:
    """A tar under a memory map, itself or its copy; errors name it by its location."""
    if not is_url(tar):
        with open_tar(tar) as opened:
            yield opened
        return
    with fetched(tar, limits.max_file_bytes, limits.timeout_seconds) as file:
        path = path_of(file)
        try:
            with open_tar(path) as opened:
                yield opened
        except ShardError as error:
            raise ShardError(str(error).replace(str(path), shown(tar))) from None


def _ending(name: str) -> str:
    """A name's ending, where it is one that a location can have."""
    ending = posixpath.splitext(name)[1].lower()
    return ending if ending[1:].isascii() and ending[1:].isalnum() and len(ending) <= 17 else ""


def _sha256(opened: TarFile, member: Member) -> str:
    with memoryview(opened.data) as data:
        return hashlib.sha256(data[member.offset : member.offset + member.size_bytes]).hexdigest()
