"""Real clips of a dataset with what is said about them, and what a prompt promises."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.shards import Dataset
from tokenizer.settings import UserError
from training.judge import attribute_values
from training.vocabulary import FIELDS, Vocabulary


@dataclass(frozen=True)
class Clips:
    """Clips of one split: uint8 frames (n, t, h, w, 3) and what each is said to show."""

    frames: np.ndarray
    attributes: list[dict[str, str]]
    prompts: list[str | None]

    def __len__(self) -> int:
        return len(self.frames)

    def parted(self, every: int) -> tuple[Clips, Clips]:
        """One clip of `every`, and the others; the first one at least."""
        place = np.arange(len(self)) % every == 0
        return self._chosen(np.flatnonzero(place)), self._chosen(np.flatnonzero(~place))

    def of_prompts(self, prompts: Collection[str | None]) -> Clips:
        """The clips with these prompts."""
        return self._chosen(np.flatnonzero([each in prompts for each in self.prompts]))

    def _chosen(self, indices: np.ndarray) -> Clips:
        return Clips(
            frames=self.frames[indices],
            attributes=[self.attributes[index] for index in indices],
            prompts=[self.prompts[index] for index in indices],
        )


def read_clips(dataset: Dataset, split: str, bucket: str, limit: int, kind: str) -> Clips:
    """At most `limit` clips of a split, spread evenly over it; prompts as the condition needs."""
    samples = dataset.samples(split=split, bucket=bucket)
    count = min(len(samples), limit)
    chosen = np.arange(count) * len(samples) // count
    metadata = samples.metadata(chosen)
    prompt = FIELDS.get(kind)
    return Clips(
        frames=samples.gather(chosen),
        attributes=[_attributes(each) for each in metadata],
        prompts=[each.get(prompt) if prompt else None for each in metadata],
    )


def intended(vocabulary: Vocabulary, *splits: Clips) -> dict[str | None, dict[str, str]]:
    """The clips' prompts, and what a sample of each should show.

    That is what the clips with this prompt have in common, of those attributes that most prompts
    determine: a caption may say the motion, a class does not. Raises UserError when no clip has a
    prompt.
    """
    groups: dict[str | None, list[dict[str, str]]] = {}
    stated = [attributes for clips in splits for attributes in clips.attributes]
    for prompt, attributes in zip((each for clips in splits for each in clips.prompts), stated):
        if (prompt is not None or vocabulary.kind == "none") and fits(vocabulary, prompt):
            groups.setdefault(prompt, []).append(attributes)
    if not groups:
        raise UserError("no clip has a prompt that this run takes")
    shared = {prompt: _common(group) for prompt, group in groups.items()}
    several = [prompt for prompt, group in groups.items() if len(group) > 1]
    vague = {
        name
        for name in attribute_values(stated)
        if 2 * sum(name in shared[prompt] for prompt in several) < len(several)
    }
    return {
        prompt: {name: value for name, value in each.items() if name not in vague}
        for prompt, each in shared.items()
    }


def fits(vocabulary: Vocabulary, prompt: str | None) -> bool:
    """Whether a run with this vocabulary takes the prompt."""
    try:
        vocabulary.encode(prompt)
    except UserError:  # a word that no training caption has, or more pieces than the run takes
        return False
    return True


def _common(group: list[dict[str, str]]) -> dict[str, str]:
    first, *others = group
    return {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in others)
    }


def _attributes(metadata: dict[str, Any]) -> dict[str, str]:
    if metadata.get("attributes"):
        return dict(metadata["attributes"])
    return {"class": metadata["label"]} if metadata.get("label") is not None else {}
