"""The loader: every sample once, exact continuation, the same batches on any number of ranks."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards import (
    Bucket,
    DamagedSample,
    Loader,
    LoaderConfig,
    Samples,
    ShardError,
    Source,
    TokenSet,
    open_dataset,
    shard,
)
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.mixture import Turns, quotas
from pipeline.shards.order import Order
from pipeline.shards.prefetch import ReadAhead
from pipeline.shards.steps import Steps
from tokenizer.settings import UserError

CODES = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=65536)
CLIP = Bucket(name="t5_h16_w16", num_frames=5, height=16, width=16)
IMAGE = Bucket(name="t1_h16_w16", num_frames=1, height=16, width=16)


def write_numbers(
    root: Path, num_clips: int, per_shard: int = 10, num_images: int = 0, num_views: int = 1
) -> Path:
    """Sample i has the codes [i, i, i]; of each clip `num_views` samples in a row."""
    with DatasetWriter(root, [CODES], [CLIP, IMAGE], samples_per_shard=per_shard) as writer:
        for bucket, count, width in ((CLIP, num_clips, 3), (IMAGE, num_images, 1)):
            for number in range(count):
                codes = np.full(width, number, dtype=np.uint16)
                clip = f"{bucket.name}-{number // num_views}"
                metadata = {"number": number, "caption": f"clip {number}"}
                key = f"{bucket.name}_{number:05d}"
                writer.write(key, {"codes": codes}, metadata, bucket=bucket.name, clip=clip)
    return root


def loader_of(root: Path, size: int = 8, rank: int = 0, world_size: int = 1, **more) -> Loader:
    config = LoaderConfig(global_batch_size=size, **more)
    return Loader(open_dataset(root).by_bucket("train", [CLIP.name]), config, rank, world_size)


def seen(loader: Loader, first: int, stop: int) -> list[int]:
    with loader.batches(first, stop) as batches:
        return [int(row[0]) for batch in batches for row in batch.arrays]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("numbers") / "data", 103, num_images=37)


@pytest.mark.parametrize("order", ["global", "window", "none"])
def test_every_epoch_shows_every_sample_once(numbers: Path, order: str) -> None:
    loader = loader_of(numbers, order=order, window_shards=3)
    found = np.array(seen(loader, 0, 103)).reshape(8, 103)  # 103 batches of 8: 8 epochs
    assert all(sorted(epoch) == list(range(103)) for epoch in found.tolist())
    different = {tuple(epoch) for epoch in found.tolist()}
    assert len(different) == (1 if order == "none" else 8)


@pytest.mark.parametrize("order", ["global", "window"])
def test_a_resumed_loader_goes_on_where_the_undisturbed_one_does(numbers: Path, order: str) -> None:
    whole = seen(loader_of(numbers, order=order, seed=5), 0, 40)
    state = json.loads(json.dumps(loader_of(numbers, order=order, seed=5).state(17)))
    again = loader_of(numbers, order=order, seed=5)
    assert seen(again, again.resume(state), 40) == whole[17 * 8 :]


def test_a_state_of_other_data_or_settings_is_refused(numbers: Path, tmp_path: Path) -> None:
    state = loader_of(numbers).state(3)
    with pytest.raises(UserError, match="saved with seed 0, now it is 1"):
        loader_of(numbers, seed=1).resume(state)
    with pytest.raises(UserError, match="saved with global_batch_size 8, now it is 16"):
        loader_of(numbers, size=16).resume(state)
    with pytest.raises(UserError, match="saved with data"):
        loader_of(write_numbers(tmp_path / "other", 50)).resume(state)
    with pytest.raises(UserError, match="saved with version 9"):
        loader_of(numbers).resume(state | {"version": 9})


@pytest.mark.parametrize("order", ["global", "window"])
@pytest.mark.parametrize("tail", ["wrap", "drop", "pad"])
def test_any_number_of_ranks_sees_the_same_global_batches(
    numbers: Path, order: str, tail: str
) -> None:
    whole = loader_of(numbers, order=order, tail=tail)
    for first, world_size in ((0, 2), (9, 1), (14, 4), (20, 8), (25, 3)):
        parts = [
            loader_of(numbers, rank=rank, world_size=world_size, order=order, tail=tail)
            for rank in range(world_size)
        ]
        for step in range(first, first + 9):
            batches = [part.batch(step) for part in parts]
            expected = whole.batch(step)
            arrays = np.concatenate([each.arrays for each in batches])
            assert np.array_equal(arrays, expected.arrays)
            padding = np.concatenate([each.is_padding for each in batches])
            assert np.array_equal(padding, expected.is_padding)
            assert [each.start for each in batches[1:]] == [each.stop for each in batches[:-1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "random"}, r"order \('random'\) must be one of global, window, none"),
        ({"tail": "cut"}, r"tail \('cut'\) must be one of wrap, drop, pad"),
        ({"tail": {"t9": "drop"}}, "tail: no bucket t9; there are t5_h16_w16"),
        ({"window_shards": 0}, "window_shards .0. must be at least 1"),
        ({"world_size": 2, "rank": 2}, r"rank \(2\) must be in \[0, 2\)"),
        ({"world_size": 9}, "at least one sample for each of 9 ranks"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(
    numbers: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loader_of(numbers, **settings)


def test_the_tail_of_an_epoch_is_left_out_or_padded_as_declared(numbers: Path) -> None:
    dropped = np.array(seen(loader_of(numbers, tail="drop"), 0, 24)).reshape(2, 96)
    assert all(len(set(epoch)) == 96 for epoch in dropped.tolist())
    assert set(dropped[0]) != set(dropped[1])
    loader = loader_of(numbers, tail="pad")
    batches = [loader.batch(step) for step in range(26)]
    for epoch in (batches[:13], batches[13:]):
        real = [row[0] for each in epoch for row in each.arrays[~each.is_padding]]
        assert sorted(real) == list(range(103))
        assert sum(int(each.is_padding.sum()) for each in epoch) == 1
        assert epoch[-1].is_padding.sum() == 1
    with pytest.raises(UserError, match="fewer than a global batch of 200: tail drop"):
        loader_of(numbers, size=200, tail="drop")
    assert loader_of(numbers, size=200, tail="pad").batch(3).is_padding.sum() == 97


def test_buckets_take_turns_by_size_each_exactly_once_an_epoch(numbers: Path) -> None:
    by_bucket = open_dataset(numbers).by_bucket("train", [CLIP.name, IMAGE.name])
    config = LoaderConfig(global_batch_size=5, tail={CLIP.name: "wrap", IMAGE.name: "drop"})
    loader = Loader(by_bucket, config)
    batches = [loader.batch(step) for step in range(128)]
    images = [batch for batch in batches if batch.bucket.name == IMAGE.name]
    assert abs(len(images) / 128 - 37 / 140) < 0.01
    epoch = [int(row[0]) for batch in images[:7] for row in batch.arrays]
    assert len(set(epoch)) == 35
    clips = [int(row[0]) for b in batches if b.bucket.name == CLIP.name for row in b.arrays]
    assert sorted(clips[:103]) == list(range(103))


def test_a_mixture_has_its_shares_and_shows_each_source_once_an_epoch(
    numbers: Path, tmp_path: Path
) -> None:
    other = write_numbers(tmp_path / "other", 20)
    sources = [
        Source(samples=open_dataset(numbers).by_bucket("train", [CLIP.name]), weight=3),
        Source(samples=open_dataset(other).by_bucket("train", [CLIP.name]), weight=1),
    ]
    loader = Loader(sources, LoaderConfig(global_batch_size=10, seed=2))
    whole = [loader.global_batch(step) for step in range(1000)]
    source = np.concatenate([each[1] for each in whole])
    item = np.concatenate([each[2] for each in whole])
    assert (source == 0).sum() == 7500
    for number, length in ((0, 103), (1, 20)):
        items = item[source == number]
        epochs = items[: len(items) // length * length].reshape(-1, length)
        assert (np.sort(epochs, axis=1) == np.arange(length)).all()
    batch = loader.batch(7)
    assert [row[0] for row in batch.arrays] == list(whole[7][2])
    assert [each["number"] for each in batch.metadata] == list(whole[7][2])
    with pytest.raises(UserError, match="must be wrap: the sources of a mixture"):
        Loader(sources, LoaderConfig(global_batch_size=10, tail="drop"))


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    slots=st.lists(st.integers(0, 5000), min_size=1, max_size=50),
)
@settings(max_examples=50, deadline=None)
def test_turns_have_no_gaps_and_can_be_asked_for_anywhere(
    weights: list[float], slots: list[int]
) -> None:
    turns = Turns(weights, 997, ("a", 1))
    takers, numbers = turns.at(np.arange(5001))
    for taker in range(len(weights)):
        assert np.array_equal(numbers[takers == taker], np.arange((takers == taker).sum()))
    again = Turns(weights, 997, ("a", 1)).at(np.array(slots))
    assert np.array_equal(again[0], takers[slots])
    assert np.array_equal(again[1], numbers[slots])
    assert quotas(weights, 997).sum() == 997
    for taker, quota in enumerate(turns.quotas.tolist()):
        had = np.cumsum(takers[:997] == taker)
        even = np.arange(1, 998) * quota / 997
        assert np.abs(had - even).max() <= len(weights) + 1


def test_a_small_bucket_comes_as_seldom_as_it_should_and_the_plan_says_so(numbers: Path) -> None:
    config = LoaderConfig(global_batch_size=8, bucket_weights={IMAGE.name: 0.01})
    loader = Loader(open_dataset(numbers).by_bucket("train", [CLIP.name, IMAGE.name]), config)
    planned = {each.bucket.name: each.share for each in loader.plan()}
    assert planned[IMAGE.name] == pytest.approx(0.37 / 103.37, rel=0.02)
    buckets = [loader.global_batch(step)[0] for step in range(10_000)]
    assert buckets.count(IMAGE.name) / 10_000 == planned[IMAGE.name]


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    window_shards=st.integers(1, 40),
    epoch=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_windowed_order_is_a_bijection_that_reads_few_shards_at_a_time(
    counts: list[int], window_shards: int, epoch: int
) -> None:
    order = Order(kind="window", seed=1, window_shards=window_shards)
    length = sum(counts)
    items = order.items(np.arange(length), epoch, np.array(counts))
    assert sorted(items.tolist()) == list(range(length))
    middle = order.items(np.arange(length // 2, length), epoch, np.array(counts))
    assert np.array_equal(middle, items[length // 2 :])
    shard_of = np.searchsorted(np.cumsum(counts), items, side="right")
    shards, bounds = order.windows(epoch, np.array(counts))
    for window, (first, stop) in enumerate(zip(bounds, bounds[1:])):
        allowed = shards[window * window_shards : (window + 1) * window_shards]
        assert set(shard_of[first:stop]) <= set(allowed.tolist())


def test_one_view_of_a_clip_is_shown_in_an_epoch_and_each_in_some(tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "views", 60, per_shard=7, num_views=3)
    for order in ("global", "window"):
        loader = loader_of(data, size=20, order=order, window_shards=2)
        epochs = np.array(seen(loader, 0, 30)).reshape(30, 20)
        assert all(sorted(epoch // 3) == list(range(20)) for epoch in epochs)
        assert set(epochs.ravel().tolist()) == set(range(60))
    everything = seen(loader_of(data, size=20, views="all"), 0, 3)
    assert sorted(everything) == list(range(60))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_read_ahead_come_in_order(numbers: Path, threads: int) -> None:
    expected = seen(loader_of(numbers, threads=0), 3, 40)
    assert seen(loader_of(numbers, threads=threads, depth=4), 3, 40) == expected


def test_reading_ahead_is_bounded_raises_in_turn_and_ends_its_threads() -> None:
    asked: list[int] = []

    def function(number: int) -> int:
        asked.append(number)
        if number == 3:
            raise KeyboardInterrupt
        return number * number

    with ReadAhead(function, range(100), threads=2, depth=4) as ahead:
        assert [next(ahead) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(KeyboardInterrupt):
            next(ahead)
        assert next(ahead) == 16
        time.sleep(0.05)
        assert max(asked) <= 9
    assert not [each for each in threading.enumerate() if each.name.startswith("read-ahead")]
    with ReadAhead(function, range(2), threads=1) as ahead:
        assert list(ahead) == [0, 1]


def damage(root: Path, numbers_per_shard: dict[int, list[int]]) -> None:
    """Flips a bit in the codes of some rows of some shards."""
    for number, rows in numbers_per_shard.items():
        path = root / f"parts/train-{CLIP.name}-{number:06d}.tar"
        sidecar = open_dataset(root).samples("train", CLIP.name).shards[number].sidecar
        data = bytearray(path.read_bytes())
        for row in rows:
            data[int(sidecar.places["offset"][row, 0]) + 129] ^= 4
        path.write_bytes(data)


def test_damaged_samples_raise_or_are_replaced_and_counted(tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "data", 40)
    sound = seen(loader_of(data), 0, 5)
    damage(data, {1: [3, 4], 3: [9]})
    with pytest.raises(DamagedSample, match=r"1\.tar: sample t5_h16_w16_00013 \(row 3\) at byte"):
        open_dataset(data).samples("train").gather([12, 13])
    with pytest.raises(DamagedSample) as raised:
        seen(loader_of(data), 0, 5)
    assert raised.value.key in {f"t5_h16_w16_{number:05d}" for number in (13, 14, 39)}
    loader = loader_of(data, damaged="skip")
    replaced = seen(loader, 0, 5)
    assert {13, 14, 39}.isdisjoint(replaced)
    for place, (found, expected) in enumerate(zip(replaced, sound)):
        if found != expected:
            assert expected in (13, 14, 39)
            following = [each for each in sound[place + 1 :] if each not in (13, 14, 39)]
            assert found == following[0] if following else True
    assert sorted(each.key[-2:] for each in loader.damaged.values()) == ["13", "14", "39"]
    assert seen(loader_of(data, damaged="skip"), 2, 5) == replaced[16:]


def test_a_dataset_of_damaged_samples_only_ends_with_an_error(tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "data", 4, per_shard=4)
    damage(data, {0: [0, 1, 2, 3]})
    with pytest.raises(ShardError, match="damaged samples in a row"):
        loader_of(data, size=2, damaged="skip").batch(0)


def test_crc_is_compared_once_and_can_be_left_out(tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "data", 10)
    damage(data, {0: [5]})
    unchecked = open_dataset(data).samples("train", check=False)
    assert unchecked.gather([5]).shape == (1, 3)
    samples: Samples = open_dataset(data).samples("train")
    assert samples.gather([4])[0, 0] == 4
    damage(data, {0: [4]})  # behind the map's back: the sample was compared already
    assert samples.gather([4])[0, 0] != 4


def test_few_shards_are_open_at_a_time(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = seen(loader_of(numbers, threads=0), 0, 26)
    maps = shard._Maps(4)
    monkeypatch.setattr(shard, "_MAPS", maps)
    loader = loader_of(numbers, threads=3, depth=5)
    assert seen(loader, 0, 26) == expected
    assert 0 < len(maps._open) <= 4


def test_the_readmes_example_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "pipeline" / "README.md").read_text(encoding="utf-8")
    section = text.split("## Reading shards")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    data = write_numbers(tmp_path / "data", 30)
    shards = [f"parts/train-{CLIP.name}-{i // 10:06d}.tar" for i in range(30)]
    table = {"shard": shards, "row": [i % 10 for i in range(30)], "label": ["1"] * 30}
    pq.write_table(pa.table({**table, "motion": [0.5] * 30}), data / "manifest.parquet")
    names: dict[str, Any] = {}
    exec(code[1].replace("runs/demo/data", str(data)), names)
    assert len(names["samples"]) == 30
    assert names["loader"].resume(names["state"]) == 3


class Endless:
    """A stream of which only the length of its epochs matters."""

    def __init__(self, epoch_length: int) -> None:
        self.epoch_length = epoch_length


@given(
    length=st.integers(1, 60),
    size=st.integers(1, 40),
    tail=st.sampled_from(["wrap", "drop", "pad"]),
    first=st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_the_slots_of_steps_cover_every_epoch_as_the_tail_says(
    length: int, size: int, tail: str, first: int
) -> None:
    streams: Any = {"a": [(0, 1.0, Endless(length))]}
    if tail == "drop" and length < size:
        with pytest.raises(UserError, match="tail drop would drop all"):
            Steps(streams, {"a": "drop"}, {"a": size}, {"a": 1.0}, seed=0)
        return
    tails: Any = {"a": tail}
    steps = Steps(streams, tails, {"a": size}, {"a": 1.0}, seed=0)
    batches = [steps.at(step) for step in range(first, first + 2 * length + 2)]
    assert all(len(batch.positions) == size for batch in batches)
    positions = np.concatenate([batch.positions[~batch.is_padding] for batch in batches])
    if tail == "wrap":
        assert np.array_equal(positions, first * size + np.arange(len(positions)))
        return
    whole = length // size if tail == "drop" else -(-length // size)
    used = whole * size if tail == "drop" else length
    epochs, places = np.divmod(positions, length)
    for epoch in np.unique(epochs)[1:-1]:
        assert np.array_equal(places[epochs == epoch], np.arange(used))
