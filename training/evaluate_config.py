"""Settings of what looks at trained models: judge, evaluation, latents; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.loss_config import LpipsFiles
from tokenizer.settings import section, setting
from training.config import SampleConfig

MEASURED_CLIPS = 256
"""Most clips of a shape whose latents are measured when nothing else is said."""


NEW_SAMPLES = 160
"""Clips that are generated and judged when nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    num_steps: int = setting(330, "optimizer steps of the judge")
    batch_size: int = setting(32, "clips per step")
    learning_rate: float = setting(6e-3, "peak learning rate (AdamW, one cycle)")
    weight_decay: float = setting(0.5, "decoupled weight decay")
    label_smoothing: float = setting(0.05, "share of the target spread over all values")
    shift: float = setting(0.1, "largest move, as a share of half the frame")
    turn: float = setting(0.2, "largest rotation, in radians")
    stretch: float = setting(0.1, "largest change of size per axis, as a natural logarithm")
    slant: float = setting(0.15, "largest shear")
    noise: float = setting(0.05, "standard deviation of noise on pixels in [-1, 1]")
    seed: int = setting(0, "first weights, order of clips and changes follow from it")

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps ({self.num_steps}) must be at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size ({self.batch_size}) must be at least 2")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    data: str | None = setting(None, "the dataset of the run (default: where it was trained)")
    samples: str | None = setting(
        None,
        "a finished folder of `tessera sample RUN --out DIR`, whose clips to judge instead of new "
        "ones",
    )
    num_samples: int | None = setting(
        None, f"clips to judge (default: {NEW_SAMPLES} new ones, or all of `samples`)"
    )
    prompts_of: Literal["train", "val"] = setting(
        "train",
        "whose prompts to sample: the training clips', or those of split val that were never "
        "trained on (a build with select.hold_out caption has them)",
    )
    num_real: int = setting(2000, "most real clips of a split to read")
    num_shown: int = setting(12, "samples in nearest.png, each beside its nearest training clip")
    judge: JudgeConfig = section(JudgeConfig)
    sample: SampleConfig = section(SampleConfig)

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 2:
            raise ValueError(f"num_samples ({self.num_samples}) must be at least 2")
        if self.num_real < 4:
            raise ValueError(f"num_real ({self.num_real}) must be at least 4")
        if self.num_shown < 1:
            raise ValueError(f"num_shown ({self.num_shown}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TokenizerEvalConfig:
    """Evaluation of a tokenizer on clips of pixel shards: `tessera tokenizer eval`."""

    split: str = setting("val", "split to evaluate on; all: every clip there is")
    max_clips: int | None = setting(
        None, "most clips of a shape, spread evenly over the split (default: all)"
    )
    batch_size: int = setting(16, "clips that are encoded together")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to evaluate")
    features: tuple[str, ...] = setting(
        ("random",),
        "features of Frechet distances: random[:SEED], judge:DIR, inception:FILE; several may be",
    )
    lpips: LpipsFiles = section(LpipsFiles, "LPIPS, if its weights are there")
    num_shown: int = setting(6, "clips in the picture, from the worst to the best")

    def __post_init__(self) -> None:
        if self.max_clips is not None and self.max_clips < 1:
            raise ValueError(f"max_clips ({self.max_clips}) must be at least 1")
        for name in ("batch_size", "num_shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Statistics of a tokenizer's latents on clips of pixel shards: `tessera tokenizer latents`."""

    split: str = setting("train", "split to measure on; all: every clip there is")
    max_clips: int = setting(MEASURED_CLIPS, "most clips of a shape, spread evenly over the split")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to measure")

    def __post_init__(self) -> None:
        if self.max_clips < 1:
            raise ValueError(f"max_clips ({self.max_clips}) must be at least 1")
