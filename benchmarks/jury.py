"""What clips of the demo's digits show, said by a judge of real ones: for the quality benchmark.

Distances are Frechet distances to the training clips in the judge's features. They fall with the
number of clips, so only those of equally many are to be compared; real clips that no training has
seen are the floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.build import build, build_pixels
from pipeline.config import BuildConfig, ClipSettings, SelectSettings
from pipeline.corpus import CLIPS_PER_VIDEO, write_corpus
from pipeline.shards import open_dataset
from tokenizer.frechet import Moments, frechet_distance
from training.evaluate_config import JudgeConfig
from training.judge import load_judge, save_judge, train_judge
from training.real_clips import Clips, read_clips

BUCKET = "9x64x64"
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

    def __init__(self, data: Path, work: Path, num_clips: int) -> None:
        pixels = open_dataset(data / "pixels")
        (bucket,) = pixels.buckets
        self.train = read_clips(pixels, "train", bucket, num_clips, "text")
        self.real = _unseen(work, num_clips)
        self.bucket = bucket
        folder, key = work / f"judge-{data.name}", f"{pixels.fingerprint} {len(self.train)}"
        judge = load_judge(folder, key)
        if judge is None:
            judge = train_judge(self.train.frames, self.train.attributes, JudgeConfig())
            save_judge(judge, folder, key)
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


def _unseen(work: Path, num_clips: int) -> Clips:
    """The clips of the corpus behind the first `num_clips`, through the same decoder."""
    corpus, folder = work / f"videos-{ALL_CLIPS}", work / f"real-after-{num_clips}"
    write_corpus(corpus, num_clips=ALL_CLIPS, num_images=0)
    videos = sorted((corpus / "videos").glob("*.mp4"))[num_clips // CLIPS_PER_VIDEO :]
    config = BuildConfig(
        sources=tuple(map(str, videos)),
        out=str(folder),
        executor="inline",
        clips=ClipSettings(fps=8.0, buckets=(BUCKET,)),
        select=SelectSettings(val_share=0.0),
    )
    build(config, until="select")
    pixels = open_dataset(build_pixels(config))
    (bucket,) = pixels.buckets
    return read_clips(pixels, "train", bucket, ALL_CLIPS, "text")
