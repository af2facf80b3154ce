"""Diff, outliers and by-source: what changed, what stands apart, what became of each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.inspection.by_source import by_source
from pipeline.inspection.diff import diff_datasets
from pipeline.inspection.outliers import outlying_clips, outlying_shards, robust_z
from pipeline.shards.format import canonical_json
from pipeline.statistics import Tally
from tokenizer.settings import UserError


def clip(index: int, **changes: Any) -> dict[str, Any]:
    row = {
        "key": f"{index:04d}",
        "clip_id": f"{index:032x}",
        "source_id": f"{index // 4:064x}",
        "uri": f"videos/{index // 4}.mp4",
        "kind": "video",
        "outcome": "kept",
        "caption": f"clip {index}",
        "code_key": f"{index:032x}",
        "start_seconds": float(index % 4),
        "end_seconds": index % 4 + 1.0,
        "motion": float(index % 7),
        "bucket": "t9_h64_w64",
        "shard": f"parts/{index // 10}.tar",
        "num_frames": 9,
        "source_width": 64,
        "source_height": 64,
    }
    return row | changes


def write(root: Path, rows: list[dict[str, Any]], settings: str = "{}", codes: int = 8) -> Path:
    """An unfinished dataset: accounts, settings, and a commit with statistics."""
    (root / "_commits").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "manifest.parquet")
    (root / "config.yaml").write_text(settings)
    tally = Tally()
    metadata = {"bucket": "t9_h64_w64", "num_frames": 9}
    tally.add_sample(metadata, np.arange(codes), codebook_size=16)
    part = {"path": "parts/0.tar", "size_bytes": 10}
    result = {"parts": [part], "statistics": tally.to_json()}
    record = canonical_json({"unit": "tokenize-0", "result": result, "run": {}})
    (root / "_commits" / "tokenize-0.json").write_bytes(record)
    return root


def test_a_dataset_does_not_differ_from_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "a", [clip(index) for index in range(10)])
    assert diff_datasets(root, root).is_empty
    assert main(["diff", str(root), str(root)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_every_kind_of_change_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [clip(index) for index in range(10)]
    after = [clip(index) for index in range(2, 13)]
    after[0] |= {"caption": None}
    after[1] |= {"outcome": "dropped:too_static", "motion": 100.0}
    after[2] |= {"code_key": "f" * 32}
    after[3] |= {"code_key": ""}  # not known, so not said to differ
    a = write(tmp_path / "a", before, "select: {drop: {too_static: motion < 1}}\nout: x\n")
    b = write(tmp_path / "b", after, "select: {drop: {too_static: motion < 2}}\nout: y\n", codes=4)
    difference = diff_datasets(a, b)
    assert difference.clips == {
        "in both": 8,
        "only in A": 2,
        "only in B": 3,
        "changed outcome": 1,
        "changed caption": 1,
        "changed codes": 1,
    }
    assert difference.examples["changed caption"] == ["0002 (videos/0.mp4): clip 2 -> None"]
    assert difference.settings == {"select.drop.too_static": ("motion < 1", "motion < 2")}
    assert difference.outcomes == {"dropped:too_static": (0, 1)}
    drift = difference.considered["motion"]
    means = [np.mean([row["motion"] for row in rows]) for rows in (before, after)]
    spread = np.std([row["motion"] for row in before])
    assert drift.drift == pytest.approx((means[1] - means[0]) / spread)
    assert [(row.used_a, row.used_b, row.distance) for row in difference.codebook] == [(8, 4, 0.5)]
    assert main(["diff", str(a), str(b)]) == 1
    shown = capsys.readouterr().out
    for text in ("too_static", "changed codes", "motion < 2", "clip 2 -> None"):
        assert text in shown
    assert main(["diff", str(a), str(b), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False


def test_manifests_without_code_keys_are_compared_all_the_same(tmp_path: Path) -> None:
    rows = [clip(index) for index in range(4)]
    bare = [{name: value for name, value in row.items() if name != "code_key"} for row in rows]
    difference = diff_datasets(write(tmp_path / "a", rows), write(tmp_path / "b", bare))
    assert difference.is_empty


def test_the_wildest_clips_come_first_with_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [clip(index) for index in range(40)]
    rows[17] |= {"motion": 500.0, "outcome": "dropped:too_wild"}
    rows[30] |= {"motion": -90.0}
    rows[31] |= {"motion": None}
    root = write(tmp_path / "a", rows)
    first, second, *_ = outlying_clips(root, "motion", 5)
    assert (first.key, first.uri, first.start_seconds) == ("0017", "videos/4.mp4", 1.0)
    assert (second.key, second.value) == ("0030", -90.0)
    assert first.z > 100 > 0 > second.z
    assert outlying_clips(root, "motion", 1, kept_only=True)[0].key == "0030"
    with pytest.raises(UserError, match="no score 'beauty'; there are motion, duration_seconds"):
        outlying_clips(root, "beauty")
    assert main(["outliers", str(root), "--by", "motion", "-k", "1"]) == 0
    assert "videos/4.mp4" in capsys.readouterr().out
    assert main(["outliers", str(root), "--by", "motion", "-k", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"][0]["value"] == 500.0


def test_a_shard_unlike_the_others_is_named(tmp_path: Path) -> None:
    rows = [clip(index, caption="a cat") for index in range(100)]
    assert outlying_shards(write(tmp_path / "a", rows)) == []
    for index in range(50, 60):
        rows[index] |= {"motion": 60.0}
    (found,) = outlying_shards(write(tmp_path / "b", rows))
    assert (found.shard, found.figure, found.value) == ("parts/5.tar", "mean motion", 60.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
@example([0.0, 3.0, 1e-308])  # nearly all at one place, and one away
def test_robust_z_of_the_median_is_zero_and_grows_with_the_distance(values: list[float]) -> None:
    distances = robust_z(np.array(values))
    order = np.argsort(values, kind="stable")
    assert (np.diff(distances[order]) >= 0).all()
    assert np.isfinite(distances).all()


def test_every_file_says_what_became_of_its_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [clip(index) for index in range(8)]
    rows[1] |= {"outcome": "dropped:too_static"}
    rows[2] |= {"outcome": "error:open", "start_seconds": None, "end_seconds": None}
    rows[7] |= {"kind": "image"}  # takes no time
    root = write(tmp_path / "a", rows)
    first, second = by_source(root)
    counts = (first.clips, first.kept, first.dropped, first.errors)
    assert (first.uri, counts, first.seconds_kept) == ("videos/0.mp4", (4, 2, 1, 1), 2.0)
    assert (second.kept, second.seconds_kept) == (4, 3.0)
    assert main(["stats", str(root), "--by", "source"]) == 0
    assert "videos/1.mp4" in capsys.readouterr().out
    assert main(["stats", str(root), "--by", "source", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["errors"] == 1
