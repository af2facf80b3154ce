"""Thousands of mutated files: every one is decoded or ends in a class of its own, in little memory.

TESSERA_FUZZ_MUTANTS=1000 gives each format so many mutants.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Any

import pytest

from pipeline.isolation import Death, Expendable
from tests.fuzz_decoding import SEEDS, decode_mutants, open_many, seed_file
from tests.video_corpus import corpus_folder, manifest_rows

MUTANTS = int(os.environ.get("TESSERA_FUZZ_MUTANTS", "200"))
MUTANTS_PER_CALL = 50
NAMES = [f"{each[0]}-{each[1]}-{len(each[2])}" for each in SEEDS]
OPENS, WARM, GROWTH_BYTES = 500, 100, 20_000  # bytes an open, behind the first hundred
MEMORY_BYTES = 768 << 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=NAMES)
def test_a_mutated_file_ends_in_a_typed_error_or_in_frames(
    seed: tuple[str, str, dict[str, str]],
) -> None:
    _fuzz(seed_file(*seed), MUTANTS, expects_frames=seed[1] != "PNG")  # sums over all its bytes


@pytest.mark.slow
@pytest.mark.corpus
def test_mutants_of_small_real_files_end_so_too() -> None:
    small = [row.path for row in manifest_rows() if 0 < row.path.stat().st_size < 40_000]
    if not small:
        pytest.skip(f"no small videos at {corpus_folder()} (TESSERA_VIDEOS names another folder)")
    for path in small:
        _fuzz(path.read_bytes(), 40, expects_frames=False)


def _fuzz(content: bytes, num_mutants: int, *, expects_frames: bool) -> None:
    ends: Counter[str] = Counter()
    with Expendable(MEMORY_BYTES) as process:
        for first in range(0, num_mutants, MUTANTS_PER_CALL):
            keys = range(first, min(first + MUTANTS_PER_CALL, num_mutants))
            answer = process.call(partial(decode_mutants, content, keys), seconds=120)
            assert not isinstance(answer, Death), (answer, keys)
            assert answer["untyped"] == []
            ends.update(answer["ends"])
    assert sum(ends.values()) == 4 * num_mutants
    assert ends["timeout"] == 0
    if expects_frames:  # the mutations are neither too weak nor too strong to tell anything
        assert ends["decoded"] > 0
        assert len(ends) > 1


@pytest.mark.parametrize("seed", SEEDS, ids=NAMES)
def test_what_is_mutated_is_sound_itself(seed: tuple[str, str, dict[str, str]]) -> None:
    from pipeline.decode import open_decoder
    from pipeline.decode.scan import gather_scan

    scan = gather_scan(open_decoder("pyav"), seed_file(*seed))
    assert (len(scan.pts), scan.error) == (1 if seed[0] == "still" else 12, None)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", [False, pytest.param(True, marks=pytest.mark.corpus)])
def test_five_hundred_opens_leak_nothing(corpus: bool) -> None:
    media: list[Any] = [seed_file(*seed) for seed in SEEDS]
    if corpus:
        media = [row.path for row in manifest_rows() if row.path.stat().st_size < 1 << 20]
        if not media:
            pytest.skip(f"no videos at {corpus_folder()} (TESSERA_VIDEOS names another folder)")
    with Expendable(1 << 30) as process:
        answer = process.call(partial(open_many, media, OPENS, WARM), seconds=300)
    assert not isinstance(answer, Death), answer
    after_first, at_the_end = answer
    assert at_the_end - after_first < GROWTH_BYTES * (OPENS - WARM)
