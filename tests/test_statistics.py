from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codebook_use import CodeCounts
from pipeline.distribution import (
    add_number,
    bins,
    deviation,
    distribution_of,
    empty_distribution,
    mean,
    quantile,
)
from pipeline.statistics import Tally, code_usage, merge, outcome_totals, overall_usage

SCALE_OF_TOKEN = np.repeat([0, 1, 2], [1, 4, 16])


def metadata(index: int, **changes: Any) -> dict[str, Any]:
    values = {
        "num_frames": 9,
        "fps": 8.0,
        "height": 64,
        "width": 64,
        "start_seconds": index * 0.1,
        "end_seconds": index * 0.1 + 1.125,
        "label": str(index % 3),
        "split": "val" if index % 4 == 0 else "train",
        "bucket": "t9_h64_w64",
        "caption": "a red 3 moving left"[: index % 20],
        "caption_by": "template",
        "scores": {"motion": index / 7, "brightness": 0.5, "aesthetic": None},
    }
    return values | changes


def record(indices: range, codebook_size: int = 32) -> dict[str, Any]:
    tally = Tally()
    for index in indices:
        codes = np.random.default_rng(index).integers(0, codebook_size, 21).astype(np.uint16)
        tally.add_sample(metadata(index), codes, SCALE_OF_TOKEN, codebook_size, 1000)
        tally.add_outcome("kept")
    tally.add_outcome("dropped:too_static", 2)
    tally.add_outcome("error:truncated")
    return tally.to_json()


def test_records_add_up_to_the_record_of_everything_in_any_order() -> None:
    parts = [record(range(5)), record(range(5, 6)), record(range(6, 20))]
    forwards = merge(*parts)
    assert forwards == merge(*reversed(parts)) == merge(merge(parts[1], parts[2]), parts[0])
    whole = Tally()
    whole.add_record(record(range(20)))
    whole.add_outcome("dropped:too_static", 4)
    whole.add_outcome("error:truncated", 2)
    assert forwards == whole.to_json()
    assert merge(merge(), forwards) == forwards


def test_a_record_survives_json_to_the_byte() -> None:
    text = json.dumps(record(range(9)), sort_keys=True)
    assert json.dumps(merge(json.loads(text)), sort_keys=True) == text


def test_merging_leaves_the_records_as_they_were() -> None:
    one, two = record(range(3)), record(range(3, 6))
    before = json.dumps([one, two])
    merge(one, two)
    assert json.dumps([one, two]) == before


def test_every_clip_that_came_in_is_counted_once() -> None:
    totals = outcome_totals(record(range(7)))
    assert totals == {"n_in": 10, "n_kept": 7, "n_dropped": 2, "n_error": 1}


def test_an_outcome_must_be_one_of_the_three_kinds() -> None:
    with pytest.raises(ValueError, match="'skipped' is not kept"):
        Tally().add_outcome("skipped")


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1))
def test_a_distribution_agrees_with_numpy(values: list[float]) -> None:
    distribution = empty_distribution()
    for value in values:
        add_number(distribution, value)
    assert distribution["min"] == pytest.approx(min(values), abs=1e-6)
    assert mean(distribution) == pytest.approx(np.mean(values), rel=1e-6, abs=2e-6)
    assert sum(count for _, _, count in bins(distribution)) == len(values)
    spread = deviation(distribution)
    within = max(1e-3, 1e-2 * max(map(abs, values)))  # squares are summed in millionths
    assert spread == pytest.approx(np.std(values), rel=1e-3, abs=within)


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
def test_equal_numbers_deviate_by_nothing(value: float, count: int) -> None:
    distribution = empty_distribution()
    for _ in range(count):
        add_number(distribution, value)
    assert deviation(distribution) == 0


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_a_distribution_of_an_array_is_that_of_its_numbers(values: list[float]) -> None:
    one_by_one = empty_distribution()
    for value in values:
        if math.isfinite(value):
            add_number(one_by_one, value)
    assert distribution_of(np.array(values)) == one_by_one


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=50), st.sampled_from([0.05, 0.5, 0.95]))
def test_quantiles_are_within_five_percent(values: list[float], share: float) -> None:
    distribution = empty_distribution()
    for value in values:
        add_number(distribution, value)
    exact = np.quantile(values, share, method="lower")
    assert quantile(distribution, share) == pytest.approx(exact, rel=0.05)


def test_a_missing_score_is_counted_as_missing_and_never_as_a_number() -> None:
    tally = Tally()
    tally.add_sample(metadata(1, scores={"aesthetic": None, "motion": math.nan}))
    statistics = tally.to_json()
    assert statistics["missing_scores"] == {"aesthetic": 1, "motion": 1}
    assert statistics["scores"] == {}


def test_groups_add_up_to_the_whole() -> None:
    statistics = record(range(10))
    for name in ("label", "bucket", "split"):
        groups = statistics["by"][name].values()
        assert sum(group["samples"] for group in groups) == 10
        assert sum(group["tokens"] for group in groups) == statistics["tokens"] == 210


def test_codebook_use_per_scale_is_what_numpy_counts() -> None:
    tally = Tally()
    codes = np.array([3, 0, 0, 1, 1, *([7] * 16)], dtype=np.uint16)
    tally.add_sample(metadata(0), codes, SCALE_OF_TOKEN, 8)
    statistics = tally.to_json()
    first, second, third = code_usage(statistics)
    assert (first.num_used, first.entropy_bits, first.num_dead) == (1, 0.0, 7)
    assert (second.num_used, second.entropy_bits, second.perplexity) == (2, 1.0, 2.0)
    assert (third.num_tokens, third.perplexity) == (16, 1.0)
    overall = overall_usage(statistics)
    assert overall is not None
    shares = np.array([1, 2, 2, 16]) / 21
    assert overall.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())


def test_codes_out_of_range_and_foreign_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 8\)"):
        Tally().add_sample(metadata(0), np.array([8]), None, 8)
    with pytest.raises(ValueError, match="32 and 16 entries"):
        merge(record(range(2), 32), record(range(2), 16))


def test_a_record_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 99 is not 2"):
        merge(merge() | {"version": 99})


def test_images_and_bare_metadata_are_counted_too() -> None:
    tally = Tally()
    tally.add_sample({"num_frames": 1})
    statistics = tally.to_json()
    assert statistics["samples"] == 1
    assert statistics["seconds"]["count"] == 0
    assert statistics["by"]["label"]["(none)"]["frames"] == 1


def slowly_counted(samples: list[np.ndarray], num_scales: int, codebook_size: int) -> np.ndarray:
    counts = np.zeros((num_scales, codebook_size), dtype=np.int64)
    for codes in samples:
        for scale, code in zip(SCALE_OF_TOKEN.tolist(), codes.tolist()):
            counts[scale, code] += 1
    return counts


@pytest.mark.parametrize("codebook_size", [1, 2, 300, 5000, 65_536])
def test_counts_survive_their_record_however_they_are_written(codebook_size: int) -> None:
    draw = np.random.default_rng(codebook_size)
    samples = [draw.integers(0, codebook_size, 21) for _ in range(40)]
    counts = CodeCounts(codebook_size)
    for codes in samples:
        counts.add(codes.astype(np.uint16), SCALE_OF_TOKEN)
    expected = slowly_counted(samples, 3, codebook_size)
    assert counts.counts is not None
    np.testing.assert_array_equal(counts.counts, expected)
    for factor in (1, 100, 10**5, 10**10):  # every width
        counts.counts[:] = expected * factor
        again = CodeCounts(codebook_size)
        again.add_record(json.loads(json.dumps(counts.to_json())))
        np.testing.assert_array_equal(again.counts, expected * factor)
        assert again.tokens.tolist() == (expected * factor).sum(axis=1).tolist()


def test_a_record_of_counts_is_small() -> None:
    counts = CodeCounts(4096)
    for seed in range(100):
        counts.add(np.random.default_rng(seed).integers(0, 4096, 21), SCALE_OF_TOKEN)
    assert len(json.dumps(counts.to_json())) < 8 * 2100


def test_large_codebooks_say_which_codes_occur_and_huge_ones_how_many_tokens() -> None:
    for size, num_used in ((1 << 18, 3), (1 << 30, None)):
        tally = Tally()
        for codes in ([5, 5, 70_000], [5, 2**18 - 1, 5]):
            tally.add_sample({"bucket": "b"}, np.array(codes, np.uint32), np.array([0, 1, 1]), size)
        total = merge(tally.to_json(), tally.to_json())
        assert [row.num_tokens for row in code_usage(total)] == [4, 8]
        assert [row.perplexity for row in code_usage(total)] == [None, None]
        overall = overall_usage(total)
        assert overall is not None
        assert (overall.num_tokens, overall.num_used, overall.entropy_bits) == (12, num_used, None)
        assert len(json.dumps(total)) < 50_000


@pytest.mark.parametrize(
    "damage",
    [
        {"counts": ["dense ###"]},
        {"counts": ["dense #######"]},
        {"counts": ["dense #######\x7f"]},
        {"counts": ["dense #######\u00e9"]},
        {"counts": ["dense " + 80 * "~"]},
        {"counts": ["sparse 1 $$$ $"]},
        {"counts": ["sparse 2 $~ $$"]},
        {"counts": ["sparse 1 $"]},
        {"counts": ["sparse -1 $ $"]},
        {"counts": ["sparse 9999999999 $ $"]},
        {"counts": ["sparse 0 $ $"]},
        {"counts": "dense ########"},
        {"counts": [7]},
        {"counts": [""] * (1 << 24)},
        {"codebook_size": -1},
        {"codebook_size": "4"},
    ],
)
def test_damaged_counts_are_refused(damage: dict[str, Any]) -> None:
    total = merge() | {"codes": {"b": {"codebook_size": 8, "counts": [], **damage}}}
    with pytest.raises((ValueError, AttributeError)):
        merge(total)
