"""Feature extractors by name, as a command takes them.

random            a random network by seed 0: for regression only
random:7          the same by seed 7
judge:RUN/judge   the judge that `tessera evaluate RUN` trained on real clips
inception:FILE    torchvision's InceptionV3 from a file of weights
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tokenizer.extractors import Extractor, InceptionFeatures, RandomFeatures, hash_of_file
from tokenizer.settings import UserError
from training.judge import WEIGHTS_FILE, open_judge


class JudgeFeatures:
    """The features of a judge: a classifier of this project's own clips."""

    about = "a judge of this project's clips: for tokenizers of the same clips only"

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self._judge = open_judge(directory)
        self.sha256 = hash_of_file(directory / WEIGHTS_FILE)
        self.name = f"judge-{self.sha256[:8]}"

    def __call__(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[np.ndarray, "n d"]:
        return self._judge.look(frames.cpu().numpy())[0]


def open_extractor(text: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor that `text` names; UserError when there is none, or its weights do not fit."""
    kind, _, argument = text.partition(":")
    makers: dict[str, Callable[[], Extractor]] = {
        "random": lambda: RandomFeatures(_seed(text, argument)),
        "judge": lambda: JudgeFeatures(argument),
        "inception": lambda: InceptionFeatures(argument, device),
    }
    if kind not in makers:
        raise UserError(f"features {text!r}: must be one of random, judge:DIR, inception:FILE")
    if kind != "random" and not argument:
        raise UserError(f"features {text!r}: name the weights, as in {kind}:PATH")
    return makers[kind]()


def _seed(text: str, argument: str) -> int:
    if argument and not argument.isdecimal():
        raise UserError(f"features {text!r}: the seed must be a whole number, as in random:7")
    return int(argument or 0)
