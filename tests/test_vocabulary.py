"""Vocabularies: captions and classes as integers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenizer.settings import UserError
from training.vocabulary import (
    Vocabulary,
    build_vocabulary,
    load_vocabulary,
    merge_pieces,
    open_clip_merges,
    save_vocabulary,
    words,
)

CAPTIONS = ["a red 3 moving left", "a blue 4 moving right", "the juggler's café, un-dramatically"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return build_vocabulary("text", [*CAPTIONS, CAPTIONS[0], None], max_pieces=64)


@pytest.mark.slow
def test_captions_are_cut_as_open_clip_cuts_them() -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    names = {index: piece for piece, index in tokenizer.encoder.items()}
    ranks = open_clip_merges()
    for caption in CAPTIONS:
        theirs = [names[index] for index in tokenizer.encode(caption)]
        ours = [piece for word in words(caption) for piece in merge_pieces(word, ranks)[0]]
        assert ours == theirs


def test_the_kept_merges_cut_known_words_as_all_of_them_do(vocabulary: Vocabulary) -> None:
    ranks = open_clip_merges()
    for caption in CAPTIONS:
        pieces = [piece for word in words(caption) for piece in merge_pieces(word, ranks)[0]]
        ids = [index for index in vocabulary.encode(caption) if index >= 0]
        assert [vocabulary.names[index] for index in ids] == pieces


def test_a_vocabulary_survives_its_file(vocabulary: Vocabulary, tmp_path: Path) -> None:
    save_vocabulary(vocabulary, tmp_path / "vocabulary.json")
    loaded = load_vocabulary(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert [loaded.encode(each) for each in CAPTIONS] == [
        vocabulary.encode(each) for each in CAPTIONS
    ]


def test_prompts_are_padded_to_the_longest_caption(vocabulary: Vocabulary) -> None:
    assert {len(vocabulary.encode(each)) for each in [*CAPTIONS, None]} == {vocabulary.length}
    assert vocabulary.encode(None) == [-1] * vocabulary.length
    assert -1 not in vocabulary.encode(CAPTIONS[2])


def test_examples_are_the_training_prompts_by_frequency(vocabulary: Vocabulary) -> None:
    assert vocabulary.examples[0] == CAPTIONS[0]
    assert set(vocabulary.examples) == set(CAPTIONS)


def test_an_unknown_word_is_named_with_the_nearest_known_one(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="'mooving' was in no training caption; did you mean 'mov"):
        vocabulary.encode("a red 3 mooving left")


def test_an_unknown_class_is_named_with_the_nearest_known_one() -> None:
    classes = build_vocabulary("class", ["cat", "dog"], max_pieces=1)
    assert classes.encode("dog") == [1]
    with pytest.raises(UserError, match="class 'cats' was not in the training data; did you mean"):
        classes.encode("cats")


def test_a_prompt_that_is_too_long_is_refused_and_a_caption_is_cut() -> None:
    short = build_vocabulary("text", CAPTIONS, max_pieces=3)
    with pytest.raises(UserError, match="has 5 word pieces; this run takes 3"):
        short.encode(CAPTIONS[0])
    assert len(short.encode(CAPTIONS[0], cut=True)) == 3


def test_a_condition_without_any_label_is_refused() -> None:
    with pytest.raises(UserError, match="no training clip has a label"):
        build_vocabulary("class", [None, None], max_pieces=1)
