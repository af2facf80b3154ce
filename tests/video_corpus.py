"""The folder of real, odd and broken videos: its manifest, a slow twin, and what we make of a file.

Imported by the process that opens the files, so it loads nothing of a test.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.decode import Library, open_decoder
from pipeline.decode.decoder import DecodeLimits, DecodeSettings
from pipeline.decode.errors import DecodeError

ROOT = Path(__file__).resolve().parent.parent
LIMITS = DecodeLimits(timeout_seconds=60)
AS_STORED = DecodeSettings(damage="prefix", strict=False, interlaced="weave", hdr="plain")
DOCS = ROOT / "docs" / "decoding.md"
_TABLE = ("<!-- conformance -->\n", "<!-- end of conformance -->\n")
_SAMPLED_BYTES = 24 << 20  # of pixels that are compared, a file


@dataclass(frozen=True)
class ManifestRow:
    """A file and what the manifest says of it; None where it says nothing."""

    path: Path
    name: str
    codec: str
    container: str
    width: int | None
    height: int | None
    frames: int | None
    rotation: int
    notes: str

    @property
    def is_broken(self) -> bool:
        return self.name.startswith("broken/")


def corpus_folder() -> Path:
    return Path(os.environ.get("TESSERA_VIDEOS", ROOT.parent / "shared" / "videos"))


def manifest_rows() -> list[ManifestRow]:
    """The rows of the folder's manifest; none where there is no folder."""
    folder = corpus_folder()
    if not (folder / "MANIFEST.csv").exists():
        return []
    with open(folder / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        return [_row(folder, row) for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Twin:
    """A full decode by plain PyAV: pts, some frames as they lie, upright, and how it ended."""

    pts: list[int]
    chosen: list[int]
    pixels: list[np.ndarray]
    error: str | None
    header_frames: int


def slow_decode(path: Path) -> Twin:
    """Every frame by `container.decode`, until it ends or raises; some of them kept."""
    pts: list[int] = []
    error = None
    header_frames = 0
    wanted: set[int] = set()
    pixels: dict[int, np.ndarray] = {}
    for keeps in (False, True):  # first how many, then those that are compared
        pts.clear()
        try:
            with av.open(str(path), metadata_errors="replace") as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                header_frames = stream.frames
                step = max(1, round(1 / ((stream.average_rate or 25) * stream.time_base)))
                for frame in container.decode(stream):
                    at = frame.pts
                    if pts and (at is None or at <= pts[-1]):
                        at = pts[-1] + step
                    if keeps and len(pts) in wanted:
                        pixels[len(pts)] = _upright(frame)
                    size_bytes = 3 * frame.width * frame.height
                    pts.append(at or 0)
        except (av.FFmpegError, OSError, MemoryError, ValueError, IndexError) as failure:
            error = type(failure).__name__
        if not pts:
            break
        count = max(1, min(8, _SAMPLED_BYTES // size_bytes, len(pts)))
        wanted = {round(each) for each in np.linspace(0, len(pts) - 1, count)}
    chosen = sorted(pixels)
    return Twin(pts, chosen, [pixels[index] for index in chosen], error, header_frames)


def examine(path: Path, pts: list[int]) -> dict[str, Any]:
    """What our decoder makes of a file: how its passes end, and its frames at those pts."""
    _forget_peak()
    found: dict[str, Any] = {}
    for name, settings in (("strict", DecodeSettings()), ("loose", AS_STORED)):
        decoder = open_decoder("pyav", LIMITS, settings)
        try:
            found[name] = [each.pts for each in decoder.scan(path)]
            found[f"{name}_error"] = decoder.damage and decoder.damage.kind
        except DecodeError as error:
            found[name] = []
            found[f"{name}_error"] = error.kind
    decoder = open_decoder("pyav", LIMITS, AS_STORED)
    if found["loose"]:
        found["probe"] = probe = decoder.probe(path)
        shape = _shape(probe)
        times = [(at - found["loose"][0]) * Fraction(*probe.time_base) for at in pts]
        found["together"] = list(decoder.sample(path, times, **shape).pixels)
        found["alone"] = [decoder.sample(path, [time], **shape).pixels[0] for time in times]
        found["key_pts"] = [
            int(each.pts[0]) for each in decoder.keyframes(path, height=36, width=64)
        ]
        found["streamed"] = [
            int(each)
            for frames in decoder.stream(path, fps=8, height=16, width=16)
            for each in frames.pts
        ]
    found["peak_bytes"] = _peak()
    return found


def frames_of(library: Library, path: Path, pts: list[int]) -> list[np.ndarray] | str:
    """Frames by a library at native size, or why it gives none."""
    decoder = open_decoder(library, LIMITS, AS_STORED)
    try:
        probe = decoder.probe(path)
        start = next(iter(decoder.scan(path))).pts
        times = [(at - start) * Fraction(*probe.time_base) for at in pts]
        return list(decoder.sample(path, times, **_shape(probe)).pixels)
    except DecodeError as error:
        return f"{error.kind}: {error.message.removeprefix(f'{path}: ')}"


def with_conformance(text: str, outcomes: dict[str, dict[str, str]]) -> str:
    """The docs with a table of what decord and torchcodec make of the files that PyAV reads."""
    begin, end = _TABLE
    before, _, rest = text.partition(begin)
    _, _, behind = rest.partition(end)
    groups: dict[tuple[str, str], list[str]] = {}
    for name, by in sorted(outcomes.items()):
        groups.setdefault((by["decord"], by["torchcodec"]), []).append(f"`{name}`")
    lines = ["", "| decord | torchcodec | files |", "|---|---|---|"]
    for (decord, torchcodec), names in sorted(groups.items()):
        lines.append(f"| {decord} | {torchcodec} | {', '.join(names)} |")
    return before + begin + "\n".join([*lines, "", ""]) + end + behind


def conformance_of(text: str) -> str:
    """That table, as the docs have it."""
    begin, end = _TABLE
    return text.partition(begin)[2].partition(end)[0]


def _shape(probe: Any) -> dict[str, int]:
    width, height = probe.stored_width, probe.stored_height
    return (
        {"height": width, "width": height}
        if probe.rotation % 180
        else {
            "height": height,
            "width": width,
        }
    )


def _upright(frame: av.VideoFrame) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    if any(part.is_alpha for part in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        pixels = (rgba[..., :3] * rgba[..., 3:] // 255).astype(np.uint8)
    turns = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
    return np.rot90(pixels, turns % 4)


def _row(folder: Path, row: dict[str, str]) -> ManifestRow:
    rotation = int(row["rotation"] or 0)
    return ManifestRow(
        path=folder / row["file"],
        name=row["file"],
        codec=row["codec"],
        container=row["container"],
        width=int(row["width"]) if row["width"] else None,
        height=int(row["height"]) if row["height"] else None,
        frames=int(row["frames"]) if row["frames"] else None,
        rotation=0 if rotation % 90 else rotation % 360,
        notes=row["notes"],
    )


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that was resident since it was forgotten, in bytes."""
    words = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()
    return 1024 * int(words[0])
