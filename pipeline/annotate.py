"""Annotate: each file is decoded once, small, and becomes clips with scores and captions.

Every score is stored and nothing is thrown away: what is too short, a tail, or unreadable is a row
with its reason. A unit is a fixed group of files; its rows are one parquet part under one commit.

A file's rows are its *scan* (decoding: clips, scores) and its *description* (sidecar: caption,
label, licence). Scans that an earlier commit has are read from there and only described again, so
a new caption decodes nothing. The death of a process is no scan, nor is one that ran out of time:
with more time or memory, a file that had too little is scanned, and it alone.
"""

from __future__ import annotations

import copy
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pipeline import picture_hash, scores, statistics
from pipeline.analysis import analyse
from pipeline.captions import Sidecar, SidecarError, parse_facts, read_sidecars
from pipeline.clip import (
    PREPROCESS_VERSION,
    Clip,
    clips_from_parquet,
    clips_to_parquet,
    failed_source,
)
from pipeline.commit import Store, fingerprint_of, unit_id
from pipeline.config import BuildConfig, decoder_recipe
from pipeline.decode import open_decoder
from pipeline.decode.errors import DecodeError, Empty, TimedOut
from pipeline.decode.scan import gather_scan
from pipeline.isolation import DeathKind
from pipeline.plan import PlannedSource
from pipeline.screen import screened_file, screened_out
from pipeline.shots import detector_facts
from pipeline.shots.settings import VERSION as SHOTS_VERSION
from pipeline.sources.media import check_readable, open_media
from pipeline.statistics import Tally
from tokenizer.settings import to_dict

DEATHS = frozenset(f"error:{kind}" for kind in get_args(DeathKind))
ANNOTATE_VERSION = 4  # raise it when the rows of an unchanged file change


@dataclass(frozen=True)
class AnnotateUnit:
    """A fixed group of files; `id` names its commit."""

    id: str
    sources: tuple[PlannedSource, ...]


class AnnotateJob:
    """What a worker needs to annotate units: settings and the dataset folder; picklable.

    `earlier` says which parts hold scans of which sources (`reuse.find_scans`).
    """

    def __init__(
        self, config: BuildConfig, root: str, earlier: Mapping[str, ScanPlace] | None = None
    ) -> None:
        self.config = config
        self.store = Store(root)
        self.earlier = dict(earlier or {})
        self.recipe = decoder_recipe(config)
        self.scan_fingerprint = scan_fingerprint(config)
        self.fingerprint = fingerprint_of(
            {
                "scan": self.scan_fingerprint,
                "means": [
                    config.annotate.timeout_seconds,
                    config.annotate.memory_bytes,
                    config.limits.timeout_seconds,
                ],
                "captions": [config.captions.label, config.captions.template],
                "statistics": statistics.VERSION,
            }
        )

    def unit(self, sources: Sequence[PlannedSource]) -> AnnotateUnit:
        inputs = [[row.source_id, row.uri, row.sidecar_sha256] for row in sources]
        return AnnotateUnit(unit_id("annotate", inputs, self.fingerprint), tuple(sources))

    def annotate(self, unit: AnnotateUnit) -> str:
        """Annotates and commits a unit in this process; returns its id."""
        started = time.monotonic()
        scans = [self.scan(source) for source in unit.sources]
        return self.commit(unit, scans, {"seconds": round(time.monotonic() - started, 3)})

    def known(self, source: PlannedSource) -> list[Clip] | None:
        """The rows of a file that an earlier commit has."""
        place = self.earlier.get(source.source_id)
        return place.rows(source.source_id) if place else None

    def lean(self) -> AnnotateJob:
        """The same job without what earlier commits have: it travels with every file."""
        job = copy.copy(self)
        job.earlier = {}
        return job

    def scan(self, source: PlannedSource) -> list[Clip]:
        """The clips and scores of one file, or one row that says why there are none."""
        known = self.known(source)
        if known is not None:
            return known
        try:
            return self._scan(source)
        except DecodeError as error:
            return [failed_source(source.source_id, source.uri, f"error:{error.kind}")]

    def commit(
        self, unit: AnnotateUnit, scans: Sequence[Sequence[Clip]], run: dict[str, Any]
    ) -> str:
        """Describes and publishes the scans of a unit, one per source."""
        rows: list[Clip] = []
        scanned: list[str] = []
        for source, scan in zip(unit.sources, scans, strict=True):
            try:
                rows += self._described(source, scan)
                if not _is_death(scan):
                    scanned.append(source.source_id)
            except SidecarError as error:
                rows.append(failed_source(source.source_id, source.uri, f"error:{error.kind}"))
        part = self.store.write_part(unit.id, ".parquet", lambda file: clips_to_parquet(rows, file))
        tally = Tally()
        outcomes = Counter(row.outcome or "kept" for row in rows)
        for outcome, count in sorted(outcomes.items()):
            tally.add_outcome(outcome, count)
        result = {
            "phase": "annotate",
            "fingerprint": self.fingerprint,
            "scan_fingerprint": self.scan_fingerprint,
            "parts": [asdict(part)],
            "num_sources": len(unit.sources),
            "scanned": scanned,
            **accounts(outcomes),
            "statistics": tally.to_json(),
        }
        self.store.commit(unit.id, result, run | worker_facts())
        return unit.id

    def rows(self, unit: AnnotateUnit) -> list[Clip]:
        """The rows of a committed unit."""
        (part,) = self.store.read(unit.id)["result"]["parts"]
        return clips_from_parquet(self.store.storage.read(part["path"]))

    def _scan(self, source: PlannedSource) -> list[Clip]:
        config = self.config
        decoder = open_decoder(*self.recipe)
        where = (source.location, config.limits, source.source_id, source.stamp)
        with open_media(*where) as media:
            probe = decoder.probe(media)
            if (rule := screened_out(decoder, media, probe, config.screen)) is not None:
                return [screened_file(source, probe, rule)]
            scan = gather_scan(decoder, media)
            if scan.error is not None:
                check_readable(source.location, config.limits, scan.error)
        if isinstance(scan.error, TimedOut):  # how far it came is the machine's doing
            raise scan.error
        if not len(scan.pts):
            raise scan.error or Empty(f"{source.uri}: no frames")
        template = Clip(clip_id="", source_id=source.source_id, uri=source.uri)
        rows = list(analyse(template, probe, scan, config))
        if scan.error is not None:  # what came before the damage is sound; the rest is one row
            rows.append(failed_source(source.source_id, source.uri, f"error:{scan.error.kind}"))
        return rows

    def _described(self, source: PlannedSource, scan: Sequence[Clip]) -> list[Clip]:
        """The rows with what the file's name and sidecar say of them."""
        sidecar = _sidecar_of(source)
        return [self._captioned(replace(clip, uri=source.uri), sidecar) for clip in scan]

    def _captioned(self, clip: Clip, sidecar: Sidecar | None) -> Clip:
        caption, label, attributes = (
            sidecar.for_span(clip.start_seconds, clip.end_seconds) if sidecar else (None, None, {})
        )
        by = "sidecar" if caption else None
        if label is None and self.config.captions.label == "folder":
            label = Path(clip.uri).parent.name or None
        if caption is None and label is not None and self.config.captions.template:
            caption = self.config.captions.template.format(label=label)
            by = "template"
        if not clip.kind:  # a row for a file, not a clip of it
            caption, label, attributes, by = None, None, {}, None
        return replace(
            clip,
            label=label,
            caption=caption,
            caption_by=by,
            attributes=dict(attributes or {}),
            license=sidecar.license if sidecar else None,
            consent=sidecar.consent if sidecar else None,
        )


def _is_death(scan: Sequence[Clip]) -> bool:
    """Whether it says only that the machine did not do: another time, or with more, it may."""
    return [row.outcome in DEATHS for row in scan] == [True]


def _sidecar_of(source: PlannedSource) -> Sidecar | None:
    if source.facts:
        return parse_facts(source.facts, source.uri)
    return read_sidecars(source.sidecars) if source.sidecars else None


@dataclass(frozen=True)
class ScanPlace:
    """An annotate part, here or in another dataset, that holds the rows of a source."""

    root: str
    path: str

    def rows(self, source_id: str) -> list[Clip]:
        clips = clips_from_parquet(Store(self.root).storage.read(self.path))
        return [clip for clip in clips if clip.source_id == source_id]


def scan_fingerprint(config: BuildConfig) -> str:
    """What a scan depends on besides the file: equal for scans that may be reused.

    What ran out of time is no scan, so that the time is none of it.
    """
    limits = to_dict(config.limits)
    del limits["timeout_seconds"]
    return fingerprint_of(
        {
            "versions": [
                ANNOTATE_VERSION,
                PREPROCESS_VERSION,
                SHOTS_VERSION,
                scores.VERSION,
                picture_hash.VERSION,
            ],
            "decoder": decoder_recipe(config).facts(),
            "limits": limits,
            "screen": to_dict(config.screen) if config.screen.drop else {},
            "shots": detector_facts(config.shots),
            "clips": to_dict(config.clips),
        }
    )


def accounts(outcomes: Counter[str]) -> dict[str, int]:
    """n_in, n_kept, n_dropped, n_error of a unit; they add up by construction and by assertion."""
    kept = outcomes["kept"]
    dropped = sum(n for outcome, n in outcomes.items() if outcome.startswith("dropped:"))
    failed = sum(n for outcome, n in outcomes.items() if outcome.startswith("error:"))
    n_in = sum(outcomes.values())
    assert n_in == kept + dropped + failed, outcomes
    return {"n_in": n_in, "n_kept": kept, "n_dropped": dropped, "n_error": failed}


def worker_facts() -> dict[str, Any]:
    """Where this ran, for a commit's `run`."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
