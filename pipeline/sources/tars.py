"""Tars of videos or images in WebDataset's layout: KEY.mp4 beside KEY.json, KEY.txt or KEY.cls.

Nothing is unpacked: a member is a location with its place in the tar. A tar behind a URL comes once
through a temporary file, where all its members are identified; later its bytes are read by range.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.captions import combined_sha256, find_sidecars
from pipeline.decode.decoder import DecodeLimits
from pipeline.shards.format import ShardError
from pipeline.shards.tarwalk import TarFile, open_tar, walk_tar
from pipeline.sources.endings import media_kind
from pipeline.sources.file import SourceFile
from pipeline.sources.location import Member, facts_of, fetched, is_url, member_of, path_of
from pipeline.sources.remote import shown


def list_tar(
    tar: str, limits: DecodeLimits, known: Mapping[str, Sequence[SourceFile]]
) -> list[SourceFile]:
    """The videos and images in a tar, in its order.

    `known` has what was listed of tars earlier; one that is unchanged since is not read again.
    Raises OSError for a tar that cannot be read, ShardError for one that is not sound.
    """
    stamp = facts_of(Member(tar, 0, 0).location).stamp
    earlier = known.get(tar, ())
    if stamp and earlier and all(file.stamp == stamp for file in earlier):
        return list(earlier)
    with _opened(tar, limits) as opened:
        return list(_members(tar, stamp, opened, with_content=is_url(tar)))


def by_tar(files: Iterable[SourceFile]) -> dict[str, list[SourceFile]]:
    """Those of the files that are members of tars."""
    tars: dict[str, list[SourceFile]] = {}
    for file in files:
        member = member_of(file.location)
        if member is not None:
            tars.setdefault(member.tar, []).append(file)
    return tars


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
