"""Select: rules drop by name, missing scores never drop, splits are stable and by source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clip import Clip
from pipeline.config import SelectSettings
from pipeline.plan import PlannedSource
from pipeline.select import group_for_shards, select_clips, split_of
from pipeline.upkeep.union import split_conflict
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


CAPTIONS = st.sampled_from(["a cat", "A  cat", "a dog", "two dogs", "", None])
CAPTIONED = st.lists(st.tuples(st.integers(0, 9), CAPTIONS), max_size=30)


def select_by(hold_out: str, described: list[tuple[int, str | None]]) -> list[Clip]:
    settings = SelectSettings(val_share=0.5, hold_out=hold_out)  # type: ignore[arg-type]
    return select_clips([clip(number, caption=caption) for number, caption in described], settings)


@given(CAPTIONED, CAPTIONED)
def test_held_out_captions_are_never_trained_on_however_the_collection_grows(
    described: list[tuple[int, str | None]], more: list[tuple[int, str | None]]
) -> None:
    rows = select_by("caption", described + more)
    assert rows[: len(described)] == select_by("caption", described)
    splits: dict[str, set[str]] = {}
    for row in rows:
        words = " ".join((row.caption or "").lower().split())
        splits.setdefault(words or row.source_id, set()).add(row.split)
    assert all(len(each) == 1 for each in splits.values())


@given(CAPTIONED)
def test_without_captions_and_by_default_whole_sources_are_held_out(
    described: list[tuple[int, str | None]],
) -> None:
    bare = [(number, None) for number, _ in described]
    by_source = [row.split for row in select_by("source", described)]
    assert by_source == [row.split for row in select_by("caption", bare)]
    assert by_source == [split_of(f"{number:064d}", 0.5) for number, _ in described]
    assert SelectSettings().hold_out == "source"


def test_about_the_share_of_many_captions_is_held_out() -> None:
    rows = select_clips([clip(0, caption=f"film {n}") for n in range(2000)], SelectSettings())
    assert {row.split for row in rows} == {"train"} or {row.split for row in rows} == {"val"}
    rows = select_clips(
        [clip(0, caption=f"film {n}") for n in range(2000)], SelectSettings(hold_out="caption")
    )
    assert 150 < sum(row.split == "val" for row in rows) < 250


def test_datasets_that_hold_out_captions_agree_on_captions_not_on_sources() -> None:
    rows = select_by("caption", [(n % 3, f"film {n}") for n in range(30)])
    assert split_conflict([rows[:20], rows[10:]]) is None
    moved = [row for row in rows if row.split == "val"][:1]
    other = select_clips(moved, SelectSettings(val_share=0.0))
    conflict = split_conflict([rows, other])
    assert conflict is not None
    assert (conflict[0].caption, conflict[3]) == (moved[0].caption, 1)
    assert split_conflict([select_by("source", [(0, "a"), (0, "b")])]) is None


def planned(number: int, skipped: str = "", gaps: str = "{}") -> PlannedSource:
    return PlannedSource(
        source_id=f"{number:064d}",
        uri="a.mp4",
        location="a.mp4",
        kind="video",
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
