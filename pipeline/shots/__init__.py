"""Shots: where one take ends and the next begins, from small frames of a whole file.

records      what is found: shots, transitions
settings     what counts as a cut, a fade, a dissolve; which detector
cuts         hard cuts, by an adaptive rule
continuity   what looks like a cut and is none: flashes, jerks
blocks       frames as a few hundred numbers
fades        to, from and through black or white
dissolves    one picture mixed into another
weights      which weights a detector has
scenedetect  hard cuts by PySceneDetect, where it is installed
transnet     cuts and gradual transitions by TransNetV2 (transnet_network), weights from a file

for piece in find_shots(scan.pts, scan.frames, probe.time_base, ShotSettings()): ...

What is in transition belongs to no shot: it is a piece of the film of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.shots.continuity import goes_on
from pipeline.shots.cuts import find_cuts, frame_changes
from pipeline.shots.records import Gradual, Shot, Transition, apart
from pipeline.shots.settings import ShotSettings
from tokenizer.settings import to_dict

_LAST_FRAME_SECONDS = 0.04  # of a file with one frame


def find_shots(
    pts: np.ndarray,
    frames: np.ndarray,
    time_base: tuple[int, int],
    settings: ShotSettings | None = None,
    breaks: Sequence[int] = (),
) -> list[Shot | Transition]:
    """The shots of a file and the transitions between them: together they cover every frame, once.

    `pts` is int64 (n,), growing; `frames` uint8 (n, 36, 64, 3) RGB, the same frames small. The last
    frame is shown for the median duration of a frame. Raises UserError where the detector's package
    or weights are missing.
    """
    if len(pts) == 0:
        return []
    settings = settings or ShotSettings()
    seconds_per_tick = time_base[0] / time_base[1]
    cuts, graduals = _detect(frames, (pts - pts[0]) * seconds_per_tick, settings)
    frame_ticks = max(1, round(_LAST_FRAME_SECONDS / seconds_per_tick))
    if len(pts) > 1:
        frame_ticks = int(np.median(np.diff(pts)))
    end_pts = np.append(pts[1:], pts[-1] + frame_ticks)
    for index in breaks:
        end_pts[index - 1] = min(end_pts[index - 1], pts[index - 1] + frame_ticks)
    longest_ticks = math.inf
    if settings.longest_seconds is not None:
        longest_ticks = settings.longest_seconds / seconds_per_tick
    return list(_pieces(pts, end_pts, sorted({*cuts, *breaks}), graduals, longest_ticks))


def detector_facts(settings: ShotSettings) -> dict[str, Any]:
    """What shots depend on besides the frames: settings, and whose weights or package it is.

    Raises UserError where those are missing.
    """
    facts = to_dict(settings)
    weights = facts.pop("transnet_weights")
    if settings.detect == "transnetv2":
        from pipeline.shots.weights import weights_sha256

        facts["weights_sha256"] = weights_sha256(weights)
    else:
        del facts["transnet_threshold"]
    if settings.detect == "pyscenedetect":
        from pipeline.shots.scenedetect import package_version

        facts["package_version"] = package_version()
    return facts


def check_detector(settings: ShotSettings) -> str | None:
    """What is to be said of a detector that is not our own, once it has been loaded for a trial.

    Raises UserError where it cannot be.
    """
    facts = detector_facts(settings)
    if settings.detect == "pyscenedetect":
        return f"PySceneDetect {facts['package_version']}"
    if settings.transnet_weights is None or settings.detect != "transnetv2":
        return None
    from pipeline.shots.transnet import load_transnet

    load_transnet(settings.transnet_weights)
    return f"TransNetV2, weights of sha256 {facts['weights_sha256']}"


def _detect(
    frames: np.ndarray, seconds: np.ndarray, settings: ShotSettings
) -> tuple[Sequence[int], Sequence[Gradual]]:
    """(the frames that begin a shot by a hard cut, transitions), both in order, not overlapping."""
    if settings.detect == "transnetv2":
        from pipeline.shots.transnet import detect

        return detect(frames, settings)
    graduals = _find_graduals(frames, seconds, settings)
    if settings.detect == "pyscenedetect":
        from pipeline.shots.scenedetect import find_cuts as find_theirs

        cuts = find_theirs(frames, seconds, settings)
        return apart(cuts, graduals)
    in_transition = np.zeros(len(frames) + 1, bool)
    for gradual in graduals:
        in_transition[gradual.start : gradual.end + 1] = True
    cuts = find_cuts(
        frame_changes(frames),
        seconds,
        settings,
        lambda index: bool(in_transition[index]) or goes_on(frames, seconds, index),
    )
    return apart(cuts, graduals)


def _find_graduals(
    frames: np.ndarray, seconds: np.ndarray, settings: ShotSettings
) -> list[Gradual]:
    from pipeline.shots.blocks import block_means
    from pipeline.shots.dissolves import find_dissolves
    from pipeline.shots.fades import find_fades

    if not (settings.fades or settings.dissolves):
        return []
    blocks = block_means(frames)
    fades = find_fades(blocks, seconds, settings.max_transition_seconds)
    found = [Gradual("fade", *span) for span in fades] if settings.fades else []
    if settings.dissolves:
        spans = find_dissolves(frames, blocks, seconds, fades, settings)
        found += [Gradual("dissolve", *span) for span in spans]
    return sorted(found, key=lambda each: each.start)


def _pieces(
    pts: np.ndarray,
    end_pts: np.ndarray,
    cuts: Sequence[int],
    graduals: Sequence[Gradual],
    longest_ticks: float,
) -> Iterator[Shot | Transition]:
    """Of frames that are on display over [pts, end_pts)."""

    def takes(start: int, end: int) -> Iterator[Shot]:
        inside = cuts[bisect_right(cuts, start) : bisect_left(cuts, end)]
        for first, last in zip([start, *inside], [*inside, end]):
            if first < last:
                yield from _split(pts, end_pts, first, last, longest_ticks)

    at = 0
    for kind, start, end in graduals:
        yield from takes(at, start)
        yield Transition(kind, start, end, int(pts[start]), int(end_pts[end - 1]))
        at = end
    yield from takes(at, len(pts))


def _split(
    pts: np.ndarray, end_pts: np.ndarray, start: int, end: int, longest_ticks: float
) -> Iterator[Shot]:
    """A take as the fewest parts that are about equally long by pts and not too long."""
    ticks = int(end_pts[end - 1] - pts[start])
    num_parts = min(math.ceil(ticks / longest_ticks), end - start) if ticks > longest_ticks else 1
    wanted = pts[start] + ticks * np.arange(1, num_parts) // num_parts
    inner = np.searchsorted(pts[start:end], wanted, side="right") - 1 + start
    edges = [start, *sorted({int(each) for each in inner} - {start}), end]
    for first, last in zip(edges, edges[1:]):
        yield Shot(int(pts[first]), int(end_pts[last - 1]), first, last)
