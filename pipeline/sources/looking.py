"""Looking: what was listed is identified by its content; tars give way to what is in them.

    known = Known(files_of_the_plan_before)
    for files in side_by_side(lambda file: look_into(file, limits, known), listed): ...

What is known already and has not changed since is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.decode.decoder import DecodeLimits
from pipeline.shards.format import ShardError
from pipeline.sources.content import identified
from pipeline.sources.file import SourceFile
from pipeline.sources.location import member_of
from pipeline.sources.tars import list_tar


class Known:
    """Files that were looked at before; those that could not be read have no `source_id`."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        self._files = {file.location: file for file in files}
        self.tars: dict[str, list[SourceFile]] = {}
        for file in self._files.values():
            member = member_of(file.location)
            if member is not None:
                self.tars.setdefault(member.tar, []).append(file)

    def recalled(self, file: SourceFile) -> SourceFile:
        """The file with what is known of its content, where that has not changed."""
        before = self._files.get(file.location)
        if before is None or not before.source_id:
            return file
        if file.stamp and (before.size_bytes, before.stamp) == (file.size_bytes, file.stamp):
            file = replace(file, source_id=before.source_id)
        described = (before.sidecars, before.sidecar_stamp)
        if file.sidecar_stamp and described == (file.sidecars, file.sidecar_stamp):
            file = replace(file, sidecar_sha256=before.sidecar_sha256)
        return file


def look_into(file: SourceFile, limits: DecodeLimits, known: Known) -> list[SourceFile]:
    """The file identified, or what is in it, when it is a tar; with a problem, what is unsound."""
    files = unpacked(file, limits, known)
    return [identified(known.recalled(each), limits) for each in files]


def unpacked(file: SourceFile, limits: DecodeLimits, known: Known) -> list[SourceFile]:
    """The file, or the files in it, when it is a tar; itself with a problem, when it is unsound."""
    if file.kind != "tar":
        return [file]
    try:
        return list_tar(file, limits, known.tars)
    except (OSError, ShardError) as error:
        return [replace(file, problem=str(error), error="open")]
