"""What clips of the demo's digits show, said by a judge of real ones: for the quality benchmark.

Distances are Frechet distances to the training clips in the judge's features. They fall with the
number of clips, so only those of equally many are to be compared; real clips that no training has
seen are the floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_runs import WORK, unseen_clips

from pipeline.shards import open_dataset
from tokenizer.frechet import Moments, frechet_distance
from training.evaluate_config import JudgeConfig
from training.real_clips import read_clips
from training.verdict import judge_of

ALL_CLIPS = 1740
"""Of the demo's corpus: as many as there are different digits."""


@dataclass(frozen=True)
class Looks:
    """What was seen in clips: features [n, d] and, per attribute, where it is as wanted [n]."""

    features: np.ndarray
    right: dict[str, np.ndarray]

    def part(self, chosen: slice) -> Looks:
        return Looks(
            self.features[chosen], {name: each[chosen] for name, each in self.right.items()}
        )

    def save(self, path: Path) -> None:
        np.savez(path, features=self.features, **self.right)

    @classmethod
    def load(cls, path: Path) -> Looks:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        return cls(arrays.pop("features"), arrays)


class Jury:
    """A judge trained on the clips that a dataset was trained on, and real clips beside them."""

    def __init__(self, data: Path, num_clips: int) -> None:
        pixels = open_dataset(data / "pixels")
        (bucket,) = pixels.buckets
        self.train = read_clips(pixels, "train", bucket, num_clips, "text")
        self.real = unseen_clips(num_clips, ALL_CLIPS)
        self.bucket = bucket
        judge, _ = judge_of(
            WORK / f"jury-{data.name}", self.train, pixels.fingerprint, JudgeConfig()
        )
        assert judge is not None
        self._judge = judge
        self._reference = Moments.of(judge.look(self.train.frames)[0])
        self.wanted = dict(zip(self.train.prompts, self.train.attributes))
        """What a caption says."""

    def look(self, frames: np.ndarray, wanted: list[dict[str, str]]) -> Looks:
        """At clips uint8 [n, t, h, w, 3], each beside what it should show."""
        features, values = self._judge.look(frames)
        right = {
            name: np.array([seen == each[name] for seen, each in zip(found, wanted)])
            for name, found in values.items()
        }
        return Looks(features, right)

    def distance(self, looks: Looks) -> float:
        return frechet_distance(Moments.of(looks.features), self._reference)
