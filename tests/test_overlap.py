"""Overlap: near pairs are those of the definition, and the shares are of hours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.clip import Clip, clips_to_parquet
from pipeline.picture_hash import distances
from pipeline.upkeep import neighbours as neighbours_module
from pipeline.upkeep.neighbours import neighbours
from pipeline.upkeep.overlap import NEAR_BITS, overlap
from tokenizer.settings import UserError

LIMIT = 1_000_000


def hashes_near_each_other(generator: np.random.Generator, count: int, spread: int) -> np.ndarray:
    """Hashes around a few centres, some of them flat as dark pictures are: uint64 [n, 3]."""
    centres = generator.integers(0, 2, (4, 192), dtype=np.uint8)
    centres[0] = 0
    centres[1, :96] = 0
    bits = centres[generator.integers(0, 4, count)]
    flips = generator.integers(0, spread + 1, count)
    bits ^= generator.random((count, 192)).argsort(axis=1) < flips[:, None]
    return np.packbits(bits, axis=1).view(np.uint64).reshape(count, 3)


def brute_force(first: np.ndarray, second: np.ndarray, bits: int) -> list[list[int]]:
    return np.argwhere(distances(first, second) <= bits).tolist()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 60), st.integers(0, 96))
def test_neighbours_are_those_of_brute_force(seed: int, n: int, m: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    first = hashes_near_each_other(generator, n, 40)
    second = np.concatenate([first[:5], hashes_near_each_other(generator, m, 40)])
    assert neighbours(first, second, bits, LIMIT).tolist() == brute_force(first, second, bits)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 25), st.sampled_from([5, 20, 40]))
def test_bands_miss_nothing(seed: int, bits: int, spread: int) -> None:
    generator = np.random.default_rng(seed)
    first = hashes_near_each_other(generator, 60, spread)
    second = np.concatenate([first[:5], hashes_near_each_other(generator, 50, spread)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours_module, "_FEW_PAIRS", 0)
        patch.setattr(neighbours_module, "_BLOCK_COST", 1e9)
        patch.setattr(neighbours_module, "_all_near", lambda *_: pytest.fail("all compared"))
        found = neighbours(first, second, bits, LIMIT)
    assert found.tolist() == brute_force(first, second, bits)


def test_chunks_and_blocks_do_not_change_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    first = hashes_near_each_other(generator, 300, 30)
    second = hashes_near_each_other(generator, 200, 30)
    expected = brute_force(first, second, NEAR_BITS)
    assert len(expected) > 300
    monkeypatch.setattr(neighbours_module, "_CHUNK", 50)
    monkeypatch.setattr(neighbours_module, "_BLOCK", 70)
    monkeypatch.setattr(neighbours_module, "_FEW_PAIRS", 0)
    for cost in (0.0, 1e9):
        monkeypatch.setattr(neighbours_module, "_BLOCK_COST", cost)
        assert neighbours(first, second, NEAR_BITS, LIMIT).tolist() == expected


def test_too_many_pairs_are_refused_before_they_are_made() -> None:
    same = np.zeros((3000, 3), np.uint64)
    with pytest.raises(OverflowError):
        neighbours(same, same, 0, LIMIT)
    spread = hashes_near_each_other(np.random.default_rng(1), 400, 8)
    with pytest.raises(OverflowError):
        neighbours(spread, spread, 30, 1000)


def manifest(root: Path, clips: list[tuple[str, float, str]]) -> Path:
    """A dataset of nothing but a manifest: (uri, start, picture hash) of clips of 1.5 s."""
    root.mkdir()
    rows = [
        Clip(
            clip_id=f"{uri} {start}",
            source_id=uri.partition("@")[0],
            uri=uri,
            outcome="kept",
            kind="video",
            start_seconds=start,
            end_seconds=start + 1.5,
            picture_hash=picture,
        )
        for uri, start, picture in clips
    ]
    rows.append(Clip(clip_id="d", source_id="d", uri="d", outcome="dropped:tail"))
    clips_to_parquet(rows, root / "manifest.parquet")
    return root


def picture(seed: int, num_flipped: int = 0) -> str:
    bits = np.random.default_rng(seed).integers(0, 2, 192, dtype=np.uint8)
    bits[:num_flipped] ^= 1
    return np.packbits(bits).tobytes().hex()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first = manifest(
        tmp_path / "a",
        [("x.mp4", 0.0, picture(1)), ("x.mp4", 2.0, picture(2)), ("y.mp4", 0.0, picture(3))],
    )
    second = manifest(
        tmp_path / "b",
        [
            ("x.mp4", 0.0, picture(1)),  # the same clip
            ("x.mp4", 4.0, picture(4)),  # another clip of the same source
            ("copy.mp4", 1.0, picture(3, NEAR_BITS)),  # looks like y.mp4
            ("other.mp4", 0.0, picture(2, NEAR_BITS + 1)),  # just too far
            ("plain.mp4", 0.0, ""),
        ],
    )
    return first, second


def test_sources_clips_and_looks_are_counted_apart(pair: tuple[Path, Path]) -> None:
    found = overlap(*pair)
    assert (found.first_clips, found.second_clips) == (3, 5)
    assert (found.shared_sources, found.shared_clips, found.near_clips) == (1, 1, 1)
    assert found.second_hours == pytest.approx(5 * 1.5 / 3600)
    assert found.shared_source_hours == pytest.approx(2 * 1.5 / 3600)
    assert found.near_share_of_hours == pytest.approx(1 / 5)
    (near,) = found.pairs
    assert (near.first_uri, near.second_uri, near.bits) == ("y.mp4", "copy.mp4", NEAR_BITS)
    assert found.by_source() == [("y.mp4", "copy.mp4", 1, NEAR_BITS)]


def test_the_threshold_is_the_number_of_bits(pair: tuple[Path, Path]) -> None:
    assert overlap(*pair, near_bits=NEAR_BITS - 1).pairs == ()
    assert len(overlap(*pair, near_bits=NEAR_BITS + 1).pairs) == 2
    with pytest.raises(UserError, match="must be 0 to 96 bits"):
        overlap(*pair, near_bits=97)


def test_a_dataset_against_itself_gives_each_pair_once(tmp_path: Path) -> None:
    root = manifest(
        tmp_path / "a",
        [
            ("x.mp4", 0.0, picture(1)),
            ("x.mp4", 2.0, picture(1)),  # the same source: not a near-duplicate
            ("y.mp4", 0.0, picture(1, 3)),
            ("z.mp4", 0.0, picture(2)),
        ],
    )
    found = overlap(root, root)
    assert [(each.first_uri, each.second_uri, each.bits) for each in found.pairs] == [
        ("x.mp4", "y.mp4", 3)
    ] * 2
    assert (found.shared_sources, found.shared_clips, found.near_clips) == (0, 0, 3)


def test_a_recoded_film_looks_like_the_film(
    write_film: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    import av

    from pipeline.build import build
    from pipeline.config import BuildConfig, SelectSettings

    for seed in range(3):
        film = write_film(tmp_path / "a" / f"{seed}.mp4", seed)
        (tmp_path / "b").mkdir(exist_ok=True)
        with av.open(str(film)) as source, av.open(str(tmp_path / "b" / film.name), "w") as copy:
            stream = copy.add_stream("libx264", rate=24, options={"crf": "35"})
            stream.height, stream.width, stream.pix_fmt = 48, 48, "yuv420p"
            for frame in source.decode(video=0):
                copy.mux(stream.encode(frame.reformat(48, 48, "yuv420p")))
            copy.mux(stream.encode())
    for name in "ab":
        config = BuildConfig(
            sources=(str(tmp_path / name),),
            out=str(tmp_path / f"data-{name}"),
            executor="inline",
            select=SelectSettings(drop={}),
        )
        build(config, "select")
        out = Path(config.out)
        (out / "selection.parquet").rename(out / "manifest.parquet")
    found = overlap(tmp_path / "data-a", tmp_path / "data-b")
    assert {(each.first_uri, each.second_uri) for each in found.pairs} == {
        (f"{seed}.mp4", f"{seed}.mp4") for seed in range(3)
    }
    assert found.near_share_of_hours == 1.0


def test_the_command_says_it_in_lines_json_and_csv(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(str, pair)
    table = tmp_path / "pairs.csv"
    assert main(["overlap", first, second, "--csv", str(table)]) == 0
    said = capsys.readouterr().out
    assert "clips of B that look like one of A: 1, 1.5 s, 20.0% of B" in said
    assert "y.mp4  copy.mp4  1 pair, from 20 bits" in said
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[1] == ["y.mp4", "0.0", "copy.mp4", "1.0", "20"]
    assert main(["overlap", first, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["near_clips"] == 0
    assert main(["overlap", first, str(tmp_path)]) == 2


@pytest.mark.slow
def test_a_hundred_thousand_clips_are_compared_in_less_than_a_minute() -> None:
    import time

    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 2**64, (100_000, 3), np.uint64) for _ in "ab")
    second[:1000] = first[:1000] ^ np.uint64(1)
    started = time.process_time()
    assert len(neighbours(first, second, NEAR_BITS, LIMIT)) == 1000
    assert time.process_time() - started < 60
