"""The folder of real, odd and broken videos: its manifest, a slow twin, and what we make of a file.

Imported by the process that opens the files, so it loads nothing of a test.
"""

from __future__ import annotations

import csv
import os
import time
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from pipeline.decode import Library, open_decoder
from pipeline.decode.container import FORMATS
from pipeline.decode.decoder import DecodeLimits, DecodeSettings
from pipeline.decode.errors import DecodeError
from pipeline.decode.scan import SCAN_HEIGHT, SCAN_WIDTH
from pipeline.decode.stills import is_still

ROOT = Path(__file__).resolve().parent.parent
LIMITS = DecodeLimits()
AS_STORED = DecodeSettings(damage="prefix", strict=False, interlaced="weave", hdr="plain")
SOUND_AS_STORED = replace(AS_STORED, strict=True)
DOCS = ROOT / "docs" / "decoding.md"
_TABLE = ("<!-- conformance -->\n", "<!-- end of conformance -->\n")
_FINE = int(
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
)
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
    sha256: str

    @property
    def is_broken(self) -> bool:
        return self.name.startswith("broken/")

    @property
    def is_still(self) -> bool:
        """Whether it is one of the images that are Pillow's, whatever it is called."""
        with open(self.path, "rb") as file:
            return is_still(file)

    @property
    def is_allowed(self) -> bool:
        """Whether it is in a format that is opened: no playlist, no sound, no other picture."""
        return any(name in FORMATS for name in self.container.split(","))


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
    """A full decode by plain PyAV: pts, some frames upright, how it ended, and its CPU seconds.

    `error` is `colours` where PyAV does not convert them, and `too_large` before a frame over a
    limit. `key_pts` are those of frames that the decoder calls key frames. `clock_holds` unless pts
    had to be made up. Pixels are those of the frames `chosen`, as they lie; where the size has
    changed, resized to that of the first frame. `step` is a nominal frame's length in ticks.
    """

    pts: list[int]
    chosen: list[int]
    pixels: list[np.ndarray]
    error: str | None
    clock_holds: bool
    header_frames: int
    key_pts: list[int]
    step: int
    seconds: float


def slow_decode(path: Path, num_held: int = 1) -> Twin | None:
    """Every frame by `container.decode`, until it ends or raises; None where all is cover art.

    The last frames are held, so many: where damage left pixels undecoded, FFmpeg shows what was in
    the memory before, and that depends on how much of it is in use.
    """
    pts: list[int] = []
    error = None
    clock_holds = True
    header_frames = 0
    key_pts: list[int] = []
    step = 1
    started = time.process_time()
    wanted: set[int] = set()
    pixels: dict[int, np.ndarray] = {}
    size = (0, 0)
    held: deque[av.VideoFrame] = deque(maxlen=num_held)
    for keeps in (False, True):  # first how many, then those that are compared
        pts.clear()
        key_pts.clear()
        try:
            with av.open(str(path), metadata_errors="replace") as container:
                films = [each for each in container.streams.video if not _is_cover(each)]
                if not films:
                    return None
                stream = films[0]
                stream.codec_context.thread_count = 1
                header_frames = stream.frames
                step = max(1, round(1 / ((stream.average_rate or 25) * stream.time_base)))
                for frame in container.decode(stream):
                    if frame.width * frame.height > LIMITS.max_pixels:
                        error = "too_large"
                        break
                    held.append(frame)
                    at = frame.pts
                    if at is None or (pts and at <= pts[-1]):
                        clock_holds = False
                        at = pts[-1] + step if pts else 0
                    seconds = (at - pts[0]) * stream.time_base if pts else 0
                    if seconds > LIMITS.max_seconds or len(pts) == LIMITS.max_frames:
                        error = "too_large"
                        break
                    size = size if pts else (frame.width, frame.height)
                    if keeps and len(pts) in wanted:
                        pixels[len(pts)] = _upright(frame, size)
                    pts.append(at)
                    key_pts += [at] if frame.key_frame else []
        except _NoColours:
            error = "colours"
        except (av.FFmpegError, OSError, MemoryError, ValueError, IndexError) as failure:
            error = type(failure).__name__
        if not pts:
            break
        count = min(8, _SAMPLED_BYTES // (3 * size[0] * size[1]))
        if size[0] * size[1] <= 4096 * 2304:
            count = max(3, count)
        places = np.linspace(0, len(pts) - 1, count) if count > 1 else [len(pts) // 2]
        wanted = {round(each) for each in places}
    chosen = sorted(pixels)
    return Twin(
        pts,
        chosen,
        [pixels[index] for index in chosen],
        error,
        clock_holds,
        header_frames,
        key_pts,
        step,
        time.process_time() - started,
    )


def examine(path: Path, pts: list[int], seconds: float) -> dict[str, Any]:
    """What our decoder makes of a file: how its passes end, and its frames at those pts.

    A pass may take so many seconds.
    """
    _forget_peak()
    limits = replace(LIMITS, timeout_seconds=seconds)
    found: dict[str, Any] = {}
    small: dict[int, np.ndarray] = {}
    for name, settings in (("strict", DecodeSettings()), ("loose", AS_STORED)):
        decoder = open_decoder("pyav", limits, settings)
        found[name] = []
        try:
            for each in decoder.scan(path):
                found[name].append(each.pts)
                small[each.pts] = each.frame
            found[f"{name}_error"] = decoder.damage and decoder.damage.kind
        except DecodeError as error:
            found[f"{name}_error"] = error.kind
    decoder = open_decoder("pyav", limits, AS_STORED)
    if found["loose"] and found["loose_error"] != "too_large":
        found["probe"] = probe = decoder.probe(path)
        shape = _shape(probe)
        if found["strict"] == found["loose"] and found["strict_error"] is None:
            decoder = open_decoder("pyav", limits, SOUND_AS_STORED)  # which may jump
        first, last = found["loose"][0], found["loose"][-1]
        times = [(at - first) * Fraction(*probe.time_base) for at in pts if at <= last]
        found["together"] = list(decoder.sample(path, times, **shape).pixels)
        found["alone"] = [decoder.sample(path, [time], **shape).pixels[0] for time in times]
        keys = list(decoder.keyframes(path, height=SCAN_HEIGHT, width=SCAN_WIDTH))
        found["key_pts"] = [int(each.pts[0]) for each in keys]
        found["key_levels"] = [
            float(np.abs(each.pixels[0].astype(np.int16) - small[int(each.pts[0])]).mean())
            for each in keys
            if int(each.pts[0]) in small
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


class _NoColours(Exception):
    """PyAV does not convert a frame's colours."""


def _upright(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    how: dict[str, int] = {}
    if size != (frame.width, frame.height):
        how = {"width": size[0], "height": size[1], "interpolation": _FINE}
    try:
        pixels = frame.to_ndarray(format="rgb24", **how)
        if any(part.is_alpha for part in frame.format.components):
            rgba = frame.to_ndarray(format="rgba", **how).astype(np.uint16)
            pixels = (rgba[..., :3] * rgba[..., 3:] // 255).astype(np.uint8)
    except av.FFmpegError:
        raise _NoColours from None
    turns = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
    return np.rot90(pixels, turns % 4)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


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
        sha256=row["sha256"],
    )


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that was resident since it was forgotten, in bytes."""
    words = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()
    return 1024 * int(words[0])
