"""Where takes end: every detector beside what is known, on the corpus and on composites; one run.

    python benchmarks/shots.py                       # ../shared/videos, 60 composites
    python benchmarks/shots.py --videos DIR --composites 20 --seed 7
    python benchmarks/shots.py --transnet-weights transnetv2-pytorch-weights.pth

A hard cut is right within one frame; a fade or dissolve where it overlaps the true one by half of
what both span. A dissolve with black or white counts as the fade that it is. Prints tables in
Markdown, and draws `benchmarks/out/shots.png`: the change from frame to frame of composite_dev.mp4,
with what is true and what was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from composites import Film, Join, composites

from pipeline.decode import open_decoder
from pipeline.decode.scan import gather_scan
from pipeline.shots import find_shots
from pipeline.shots.cuts import frame_changes
from pipeline.shots.records import Shot, Transition
from pipeline.shots.settings import ShotSettings

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"
OUT = Path(__file__).parent / "out" / "shots.png"


def cuts(*frames: int) -> list[Join]:
    return [Join("cut", frame, frame) for frame in frames]


KNOWN: dict[str, list[Join]] = {  # by the manifest's notes, looked at frame by frame
    "bikes_multishot.mp4": [Join("cut", at, at) for at in (30, 76, 137, 187, 242)],
    "bbb_480p_30s.mp4": [Join("fade", 4, 58), *(Join("cut", at, at) for at in (285, 378, 553))],
    "bbb_720p_30s_vp8.webm": [
        Join("fade", 4, 56),
        *(Join("cut", at, at) for at in (283, 376, 551)),
    ],
    "bbb_1080p60_2s.mp4": [Join("cut", 21, 21)],
    "nasa_13013.mp4": [Join("dissolve", 127, 151), Join("cut", 202, 202)],
    "vfr_drop.mp4": [Join("cut", 42, 42)],
    "mpeg4_xvid_mp3.avi": [Join("fade", 10, 19)],
    "bottles_static_40s.mp4": [],
    "foreman_hevc_720p.mp4": [],
    "carphone_qcif.mp4": [],
    "forest_848x464.mp4": [],
    "no_duration.webm": [],
    "asl_eat.mkv": [],
}


@dataclass
class Score:
    """What was found of hard cuts and of transitions, and what was not there."""

    hits: dict[str, int] = field(default_factory=lambda: {"cut": 0, "gradual": 0})
    misses: dict[str, int] = field(default_factory=lambda: {"cut": 0, "gradual": 0})
    extra: dict[str, int] = field(default_factory=lambda: {"cut": 0, "gradual": 0})
    seconds: float = 0.0
    frames: int = 0

    def add(self, truth: Sequence[Join], found: Sequence[Join]) -> None:
        left = list(found)
        for join in truth:
            kind = "cut" if join.kind == "cut" else "gradual"
            match = next((each for each in left if _is_match(each, join)), None)
            (self.misses if match is None else self.hits)[kind] += 1
            if match is not None:
                left.remove(match)
        for each in left:
            self.extra["cut" if each.kind == "cut" else "gradual"] += 1

    def cells(self) -> list[str]:
        kinds = ("cut", "gradual")
        counts = [f"{self.hits[k]} / {self.misses[k]} / {self.extra[k]}" for k in kinds]
        return [*counts, f"{1e6 * self.seconds / self.frames:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=Path, default=VIDEOS)
    parser.add_argument("--composites", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transnet-weights")
    arguments = parser.parse_args()
    detectors = list(_detectors(arguments.transnet_weights))
    print("right / missed / extra; microseconds of CPU a frame, decoding left out\n")
    for _, settings in detectors:  # what a first call loads is no part of the cost
        find_shots(np.arange(60), np.zeros((60, 36, 64, 3), np.uint8), (1, 24), settings)
    header = [f"{name}: {what}" for name, _ in detectors for what in ("cuts", "gradual", "us")]
    print("| film |", " | ".join(header), "|\n|", "---|" * (len(header) + 1))
    for film in _corpus(arguments.videos):
        print("|", " | ".join([film.name, *_row([film], detectors)]), "|", flush=True)
    if arguments.composites:
        made = list(composites(arguments.videos, arguments.composites, arguments.seed))
        title = f"{len(made)} composites"
        print("|", " | ".join([title, *_row(made, detectors)]), "|", flush=True)
    draw_curve(arguments.videos / "composite_dev.mp4", OUT)
    print(f"\n{OUT}")


def draw_curve(path: Path, target: Path) -> None:
    """The curve of changes of composite_dev.mp4, with truth above and findings below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (film,) = (each for each in _corpus(path.parent) if each.name == path.name)
    changes = frame_changes(film.frames)
    figure, axes = pyplot.subplots(figsize=(11, 3.2), layout="constrained")
    axes.plot(changes, color="black", linewidth=0.8)
    top = float(changes.max())
    for joins, low, high, color in (
        (film.truth, 1.06, 1.16, "tab:green"),
        (_found(film, ShotSettings()), 1.18, 1.28, "tab:blue"),
    ):
        for join in joins:
            extent = max(join.end - join.start, 1)
            box = pyplot.Rectangle((join.start - 0.5, low * top), extent, (high - low) * top)
            box.set_color(color)
            axes.add_patch(box)
            if join.kind != "cut":
                axes.text(join.end + 3, low * top, join.kind, color=color, fontsize=8)
    axes.text(2, 1.07 * top, "true", color="tab:green", fontsize=8)
    axes.text(2, 1.19 * top, "found", color="tab:blue", fontsize=8)
    axes.set(xlim=(0, len(changes)), ylim=(0, 1.32 * top))
    axes.set(xlabel="frame of composite_dev.mp4", ylabel="change of hue, saturation, value")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _detectors(weights: str | None) -> Iterator[tuple[str, ShotSettings]]:
    yield "adaptive", ShotSettings()
    if importlib.util.find_spec("scenedetect"):
        yield "pyscenedetect", ShotSettings(detect="pyscenedetect", fades=False, dissolves=False)
    if weights:
        yield "transnetv2", ShotSettings(detect="transnetv2", transnet_weights=weights)


def _corpus(videos: Path) -> Iterator[Film]:
    decoder = open_decoder("pyav")
    known = dict(KNOWN)
    for path in sorted(videos.glob("*.shots.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        known[told["file"]] = [_told(each) for each in told["transitions"]]
    for name in sorted(known):
        if (videos / name).exists():
            scan = gather_scan(decoder, videos / name)
            ticks = float(np.median(np.diff(scan.pts)))
            fps = round(float(1 / (ticks * Fraction(*decoder.probe(videos / name).time_base))))
            yield Film(name, fps, scan.frames, tuple(known[name]))


def _told(each: dict) -> Join:
    if each["type"] == "cut":
        return Join("cut", each["frame"], each["frame"])
    return Join("fade" if "fade" in each["type"] else "dissolve", each["start"], each["end"])


def _row(films: Sequence[Film], detectors: Sequence[tuple[str, ShotSettings]]) -> list[str]:
    cells = []
    for _, settings in detectors:
        score = Score()
        for film in films:
            started = time.process_time()
            found = _found(film, settings)
            score.seconds += time.process_time() - started
            score.frames += len(film.frames)
            score.add(film.truth, found)
        cells += score.cells()
    return cells


def _found(film: Film, settings: ShotSettings) -> list[Join]:
    pieces = find_shots(np.arange(len(film.frames)), film.frames, (1, film.fps), settings)
    joins = [
        Join(each.kind, each.start_index, each.end_index)
        for each in pieces
        if isinstance(each, Transition)
    ]
    joins += [
        Join("cut", behind.start_index, behind.start_index)
        for before, behind in zip(pieces, pieces[1:])
        if isinstance(before, Shot) and isinstance(behind, Shot)
    ]
    return sorted(joins, key=lambda join: join.start)


def _is_match(found: Join, true: Join) -> bool:
    if true.kind == "cut" or found.kind == "cut":
        return found.kind == true.kind and abs(found.start - true.start) <= 1
    both = min(found.end, true.end) - max(found.start, true.start)
    return both >= 0.5 * (max(found.end, true.end) - min(found.start, true.start))


if __name__ == "__main__":
    main()
