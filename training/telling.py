"""Captions told to a generator with a frozen text tower: those of training, and new ones.

Features are made once: those of the training captions lie in the run, so that these can be sampled
without the tower's weights. New captions need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizer.settings import UserError
from training.caption_features import FEATURES_FILE, CaptionFeatures, load_features
from training.config import ConditionConfig
from training.text_tower import load_tower
from training.vocabulary import Vocabulary


def features_of(
    captions: tuple[str, ...], config: ConditionConfig, run: Path | None
) -> CaptionFeatures:
    """The features of training captions: from the run's file, where it has just these."""
    if run is not None and (run / FEATURES_FILE).exists():
        kept = load_features(run / FEATURES_FILE)
        wanted = config.weights_sha256 or kept.sha256
        if (kept.captions, kept.model, kept.sha256) == (captions, config.model, wanted):
            return kept
    tower = load_tower(config.model, config.weights, config.weights_sha256)
    return tower.encode(captions, config.max_pieces)


def with_new_captions(
    vocabulary: Vocabulary,
    told: CaptionFeatures,
    prompts: Sequence[str],
    weights: str | None,
) -> tuple[Vocabulary, CaptionFeatures]:
    """Both with the prompts that were no training caption; UserError without the same tower."""
    new = tuple(dict.fromkeys(each for each in prompts if each not in vocabulary.names))
    if not new:
        return vocabulary, told
    shape = vocabulary.tower
    assert shape is not None
    if weights is None or not Path(weights).exists():
        raise UserError(
            f"caption {new[0]!r} was not trained on, so it needs the text tower {shape.model} "
            f"(sha256 {shape.sha256[:12]}...), whose weights are not at {weights}: give their file "
            "with --text_weights"
        )
    found = load_tower(shape.model, weights, shape.sha256).encode(new, max_pieces=10**6)
    for caption, count in zip(new, found.counts.tolist()):
        if count > shape.num_pieces:
            raise UserError(
                f"prompt {caption!r} has {count} word pieces; this run takes {shape.num_pieces}"
            )
    return replace(vocabulary, names=vocabulary.names + new), told.extended(found)
