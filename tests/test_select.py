"""Select: rules drop by name, missing scores never drop, splits are stable and by source."""

from __future__ import annotations

import pytest

from pipeline.clip import Clip
from pipeline.config import SelectSettings
from pipeline.plan import PlannedSource
from pipeline.select import group_for_shards, select_clips, split_of
from tokenizer.settings import UserError, from_dict


def clip(number: int = 0, **facts: object) -> Clip:
    source = f"{number:064d}"
    return Clip(clip_id=str(number), source_id=source, uri="a.mp4", bucket="t9_h64_w64", **facts)  # type: ignore[arg-type]


def test_the_first_rule_that_holds_names_the_drop() -> None:
    settings = SelectSettings(drop={"too_dark": "brightness < 10", "too_static": "motion < 1"})
    rows = select_clips(
        [
            clip(scores={"brightness": 5.0, "motion": 0.1}),
            clip(scores={"brightness": 50.0, "motion": 0.1}),
            clip(scores={"brightness": 50.0, "motion": 2.0}),
        ],
        settings,
    )
    assert [row.outcome for row in rows] == ["dropped:too_dark", "dropped:too_static", "kept"]


def test_a_missing_score_neither_passes_nor_fails() -> None:
    settings = SelectSettings(drop={"too_static": "motion < 1", "too_busy": "motion > 100"})
    (row,) = select_clips([clip(scores={"motion": None})], settings)
    assert row.outcome == "kept"


def test_what_is_already_decided_stays() -> None:
    (row,) = select_clips([clip(outcome="error:corrupt")], SelectSettings())
    assert (row.outcome, row.split) == ("error:corrupt", "")


def test_splits_follow_the_source_and_have_about_the_share() -> None:
    splits = [split_of(f"{number:064d}", 0.1) for number in range(2000)]
    assert 150 < splits.count("val") < 250
    assert splits == [split_of(f"{number:064d}", 0.1) for number in range(2000)]
    assert split_of("a", 0.0) == "train"


def planned(number: int, skipped: str = "", gaps: str = "{}") -> PlannedSource:
    return PlannedSource(
        source_id=f"{number:064d}",
        uri="a.mp4",
        path="a.mp4",
        kind="video",
        size_bytes=1,
        mtime_ns=1,
        sidecar_path=None,
        sidecar_sha256=None,
        unit=0,
        generation=0,
        skipped=skipped,
        gaps=gaps,
    )


def test_a_removed_source_leaves_the_shards_of_others_as_they_were() -> None:
    rows = select_clips([clip(number) for number in range(40)], SelectSettings(val_share=0.0))
    whole = group_for_shards(rows, [planned(number) for number in range(40)], 8)
    plan = [planned(number) for number in range(40)]
    plan[11] = planned(11, "removed", '{"train/t9_h64_w64":1}')
    left = group_for_shards([row for row in rows if row is not rows[11]], plan, 8)
    assert left[1] == [row for row in whole[1] if row is not rows[11]]
    assert left[:1] + left[2:] == whole[:1] + whole[2:]


def test_shards_hold_one_split_and_bucket_in_order() -> None:
    rows = select_clips([clip(number) for number in range(100)], SelectSettings(val_share=0.3))
    shards = group_for_shards(rows, [planned(number) for number in range(100)], 16)
    assert sum(map(len, shards)) == 100
    assert all(len({(row.split, row.bucket) for row in shard}) == 1 for shard in shards)
    assert all(len(shard) <= 16 for shard in shards)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_share": 1.5}, r"val_share \(1.5\) must lie in"),
        ({"drop": {"x": "brightnes < 3"}}, "drop.x"),
        ({"drop": {"x": "motion ~ 3"}}, "drop.x"),
        ({"drop": {"Bad name": "motion < 3"}}, "drop.Bad name"),
        ({"drop": "motion < 3"}, "drop must be mapping"),
        ({"vall_share": 0.5}, "did you mean 'val_share'"),
    ],
)
def test_impossible_settings_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(SelectSettings, values, "build.yaml")
