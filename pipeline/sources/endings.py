"""What a file is by the ending of its name."""

from __future__ import annotations

from typing import Literal

from pipeline.sources.location import ending_of

VIDEO_ENDINGS = (
    *(".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264"),
    *(".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".ts", ".vob", ".webm"),
    ".wmv",
)
IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
MANIFEST_ENDINGS = (".parquet", ".csv", ".jsonl")
TAR_ENDING = ".tar"

Kind = Literal["video", "image"]


def media_kind(name: str) -> Kind | None:
    """What a name promises; None when it is neither a video nor an image."""
    ending = ending_of(name)
    if ending in VIDEO_ENDINGS:
        return "video"
    return "image" if ending in IMAGE_ENDINGS else None


def known_endings() -> str:
    media = " ".join(VIDEO_ENDINGS + IMAGE_ENDINGS)
    return f"known endings: {media}; {TAR_ENDING}; manifests: {' '.join(MANIFEST_ENDINGS)}"
