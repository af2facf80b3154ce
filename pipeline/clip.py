"""What a clip is: a source, a half-open span of pts, a crop and a target shape. Nothing is cut.

The preprocess rule: a shot is resampled to the target fps by presentation time, cut into windows of
the longest bucket that fits, cropped centrally to the bucket's aspect, and resized once. Tails that
fill no window are clips too: dropped ones, so that every second of video is accounted for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.decode.decoder import ClipRequest, Crop, Probe
from pipeline.scores import VERSIONS
from pipeline.shards.format import Bucket, bucket_name, canonical_json
from pipeline.shards.table import read_table

PREPROCESS_VERSION = 1  # of the rule below; part of every fingerprint that depends on it

KEPT = "kept"
_NOT_IN_SAMPLES = (
    *("outcome", "start_pts", "end_pts", "kind"),
    *("shard", "row", "code_key", "picture_hash", "content"),
)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of the accounts: a clip ever considered, or a file that could not be read.

    `outcome` is "" while undecided, then `kept`, `dropped:<rule>` or `error:<class>`. Times are in
    the source's own pts; `start_seconds` counts from the file's first frame. `shard` and `row` say
    where a kept clip's sample lies, `code_key` how its codes were made. `crop` and `content` are
    (x, y, width, height) in displayed pixels; `content` is what lies between black borders, the
    whole picture where there are none, and zeros in rows from before it was looked for.
    """

    clip_id: str
    source_id: str
    uri: str
    outcome: str = ""
    kind: str = ""
    start_pts: int = 0
    end_pts: int = 0
    time_base: tuple[int, int] = (0, 1)
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    source_width: int = 0
    source_height: int = 0
    fps: float = 0.0
    bucket: str = ""
    num_frames: int = 0
    width: int = 0
    height: int = 0
    crop: Crop = (0, 0, 0, 0)
    content: Crop = (0, 0, 0, 0)
    view: int = 0
    scores: Mapping[str, float | None] = field(default_factory=dict)
    label: str | None = None
    caption: str | None = None
    caption_by: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    consent: str | None = None
    split: str = ""
    shard: str = ""
    row: int = -1
    code_key: str = ""
    picture_hash: str = ""

    @property
    def key(self) -> str:
        """The sample's name in its shard: no dots, unique in a dataset."""
        return f"{self.view_group}_{self.view}"

    @property
    def view_group(self) -> str:
        """The name that all views of a clip share."""
        return f"{self.source_id[:16]}_{self.start_pts:012d}_{self.end_pts:012d}"

    @property
    def duration_seconds(self) -> float:
        return self.end_seconds - self.start_seconds

    def score(self, name: str) -> float | None:
        """A score, or a plain fact of the clip, by the name that rules use."""
        if name in ("num_frames", "duration_seconds"):
            return float(getattr(self, name))
        if name in ("width", "height"):
            return float(getattr(self, f"source_{name}"))
        return self.scores.get(name)

    def request(self) -> ClipRequest:
        return ClipRequest(
            start_pts=self.start_pts,
            end_pts=self.end_pts,
            fps=self.fps,
            num_frames=self.num_frames,
            crop=self.crop,
            height=self.height,
            width=self.width,
        )

    def metadata(self) -> dict[str, Any]:
        """What travels in the sample's JSON."""
        row = asdict(self)
        for name in _NOT_IN_SAMPLES:
            del row[name]
        return row | {
            "key": self.key,
            "span": [self.start_pts, self.end_pts],
            "scores": dict(self.scores),
            "attributes": dict(self.attributes),
        }


def clip_identity(
    source_id: str, start_pts: int, end_pts: int, crop: Sequence[int], view: int
) -> str:
    """The clip's id: what is seen, whatever it is called or scored."""
    identity = [source_id, start_pts, end_pts, list(crop), view]
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:32]


def failed_source(source_id: str, uri: str, outcome: str, **facts: Any) -> Clip:
    """The row of a file that gave no clips."""
    return Clip(
        clip_id=clip_identity(source_id, 0, 0, (0, 0, 0, 0), 0),
        source_id=source_id,
        uri=uri,
        outcome=outcome,
        **facts,
    )


def cut_windows(
    template: Clip,
    probe: Probe,
    start_pts: int,
    end_pts: int,
    fps: float,
    buckets: list[Bucket],
    within: Crop | None = None,
) -> Iterator[Clip]:
    """The clips of one shot [start_pts, end_pts): windows, then a dropped row for what is left.

    `template` carries what the clips share (source, licence); crop, span and bucket are set here.
    Crops lie `within` a part of the picture (default: all of it).
    """
    within = within or (0, 0, probe.width, probe.height)
    if probe.kind == "image":
        shapes = [bucket for bucket in buckets if bucket.num_frames == 1]
        clip = replace(template, start_pts=start_pts, end_pts=end_pts, fps=fps)
        yield _shaped(clip, probe, shapes, within) if shapes else _dropped(clip, probe, "no_bucket")
        return
    time_base = Fraction(*probe.time_base)
    exact_fps = Fraction(fps).limit_denominator(100_000)
    available = math.ceil(float((end_pts - start_pts) * time_base * exact_fps) - 1e-6)
    fitting = [b for b in buckets if 1 < b.num_frames <= available]
    if not fitting:
        rule = "too_short" if any(b.num_frames > 1 for b in buckets) else "no_bucket"
        yield dropped_span(template, probe, start_pts, end_pts, fps, rule)
        return
    num_frames = max(bucket.num_frames for bucket in fitting)
    shapes = [bucket for bucket in fitting if bucket.num_frames == num_frames]
    window = num_frames / exact_fps / time_base
    count = available // num_frames
    edges = [min(start_pts + round(index * window), end_pts) for index in range(count + 1)]
    for first, last in zip(edges, edges[1:]):
        yield _shaped(
            replace(template, start_pts=first, end_pts=last, fps=fps), probe, shapes, within
        )
    if available > count * num_frames:
        yield dropped_span(template, probe, edges[-1], end_pts, fps, "tail")


def dropped_span(
    template: Clip, probe: Probe, start_pts: int, end_pts: int, fps: float, rule: str
) -> Clip:
    """The row of [start_pts, end_pts) as a whole, dropped by `rule`."""
    return _dropped(replace(template, start_pts=start_pts, end_pts=end_pts, fps=fps), probe, rule)


def central_crop(width: int, height: int, aspect: float) -> Crop:
    """(x, y, w, h): the largest centred rectangle of aspect w/h, in whole pixels."""
    if width > height * aspect:
        cropped = max(1, round(height * aspect))
        return (width - cropped) // 2, 0, cropped, height
    cropped = max(1, round(width / aspect))
    return 0, (height - cropped) // 2, width, cropped


def make_buckets(shapes: Iterable[tuple[int, int, int]]) -> list[Bucket]:
    """Buckets of (num_frames, height, width), without schedules."""
    return [
        Bucket(name=bucket_name(*shape), num_frames=shape[0], height=shape[1], width=shape[2])
        for shape in shapes
    ]


def _shaped(clip: Clip, probe: Probe, shapes: list[Bucket], within: Crop) -> Clip:
    """The clip in the bucket of the nearest aspect, then of the nearest area."""
    left, top, width, height = within

    def distance(bucket: Bucket) -> tuple[float, float]:
        aspect = abs(math.log(bucket.width / bucket.height * height / width))
        area = abs(math.log(bucket.width * bucket.height / (width * height)))
        return round(aspect, 6), area

    bucket = min(shapes, key=distance)
    x, y, *size = central_crop(width, height, bucket.width / bucket.height)
    return replace(
        _placed(clip, probe, (left + x, top + y, size[0], size[1])),
        bucket=bucket.name,
        num_frames=bucket.num_frames,
        height=bucket.height,
        width=bucket.width,
    )


def _dropped(clip: Clip, probe: Probe, rule: str) -> Clip:
    crop = (0, 0, probe.width, probe.height)
    return replace(_placed(clip, probe, crop), outcome=f"dropped:{rule}")


def _placed(clip: Clip, probe: Probe, crop: Crop) -> Clip:
    return replace(
        clip,
        clip_id=clip_identity(clip.source_id, clip.start_pts, clip.end_pts, crop, clip.view),
        kind=probe.kind,
        time_base=probe.time_base,
        source_width=probe.width,
        source_height=probe.height,
        crop=crop,
    )


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "clip_id", "source_id", "uri", "outcome")),
        ("kind", pa.string()),
        *((name, pa.int64()) for name in ("start_pts", "end_pts")),
        ("time_base", pa.list_(pa.int64(), 2)),
        *((name, pa.float64()) for name in ("start_seconds", "end_seconds")),
        *((name, pa.int32()) for name in ("source_width", "source_height")),
        ("fps", pa.float64()),
        ("bucket", pa.string()),
        *((name, pa.int32()) for name in ("num_frames", "width", "height")),
        ("crop", pa.list_(pa.int32(), 4)),
        ("content", pa.list_(pa.int32(), 4)),
        ("view", pa.int32()),
        *((name, pa.float64()) for name in VERSIONS),
        *((name, pa.string()) for name in ("label", "caption", "caption_by")),
        ("attributes", pa.string()),  # JSON: names differ from source to source
        *((name, pa.string()) for name in ("license", "consent", "split", "shard")),
        ("row", pa.int64()),
        *((name, pa.string()) for name in ("code_key", "picture_hash")),
    ]
)


def clips_to_parquet(clips: Sequence[Clip], target: Any) -> None:
    """Writes rows to a path or file object; the same rows give the same bytes."""
    rows = []
    for clip in clips:
        row = asdict(clip) | {"key": clip.key}
        row |= {name: clip.scores.get(name) for name in VERSIONS}
        row["attributes"] = canonical_json(dict(clip.attributes)).decode()
        rows.append({name: row[name] for name in _SCHEMA.names})
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    options = {"compression": "zstd", "store_schema": False, "write_page_checksum": True}
    pq.write_table(table, target, **options)


def clips_from_parquet(source: str | Path | bytes) -> list[Clip]:
    """The rows that `clips_to_parquet` wrote, from a file or from its bytes.

    What an earlier version had no column for is a score of None, or the field's default.
    """
    clips = []
    for row in read_table(source).to_pylist():
        row["scores"] = {name: row.pop(name, None) for name in VERSIONS}
        row["attributes"] = json.loads(row["attributes"])
        for name in {"time_base", "crop", "content"} & row.keys():
            row[name] = tuple(row[name])
        del row["key"]
        clips.append(Clip(**row))
    return clips
