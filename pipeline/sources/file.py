"""A file to look at: what listing finds, before anything of it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FileFacts:
    """The size of a file, None where a server does not say, and its stamp.

    A stamp is another one when the content is; "" where nothing tells.
    """

    size_bytes: int | None
    stamp: str


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that `sources` reaches; `kind` is what its name promises.

    `uri` is its path below the folder, tar or manifest that was named, so that a dataset does not
    depend on where the collection lies; for a file that was named itself it is its name.
    """

    uri: str
    location: str
    kind: Literal["video", "image", "tar"]
    """A tar stands for the videos and images in it, until it is looked into."""
    size_bytes: int | None = None
    """None before it was asked for."""
    stamp: str = ""
    """Another one when the content is; "" where nothing tells."""
    sidecars: tuple[str, ...] = ()
    """Locations of the files that describe it."""
    sidecar_stamp: str = ""
    facts: str = ""
    """What a manifest says of it, as the JSON of a sidecar."""
    source_id: str = ""
    """sha256 of its content, where that is known already."""
    sidecar_sha256: str = ""
    """Of all that describes it, where that is known already."""
    problem: str = ""
    """Why it cannot be read, in one line."""
    error: str = ""
    """The class of that problem: open, too_large, timeout."""
