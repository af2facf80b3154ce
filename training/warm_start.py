"""Weights of another run to begin with: fine-tuning, or a method from another one's.

Every parameter is accounted for: it begins anew because a pattern says so, it is taken, or it is
left out because a pattern says so. Anything else is an error that names them all, and so are rows
that stand for other things there: codes of another tokenizer, words or classes that are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizer.settings import UserError
from training.config import WarmStartConfig
from training.weights import weights_of


@dataclass(frozen=True)
class WarmStart:
    """What became of each parameter; names are sorted."""

    source: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"begins with {len(self.taken)} tensors of {self.source}"]
        lines += [f"begins at random: {name}" for name in self.fresh]
        lines += [f"left out: {name}" for name in self.left_out]
        return "\n".join(lines)


@torch.no_grad()
def warm_start(
    module: nn.Module, config: WarmStartConfig, others: Mapping[str, str] | None = None
) -> WarmStart:
    """Fills `module` from `config.run` as far as the patterns allow; UserError for all else.

    `others`: what parameters whose names begin so stand for there, which is something else here.
    """
    assert config.run is not None
    source = Path(config.run)
    theirs = weights_of(source)
    ours = module.state_dict()
    taken, fresh, left_out, problems = [], [], [], []
    for name, value in sorted(ours.items()):
        if _matches(name, config.fresh):
            fresh.append(name)
        elif name in theirs and theirs[name].shape == value.shape:
            taken.append(name)
            problems += [
                f"{name} is for {what} there"
                for prefix, what in (others or {}).items()
                if name.startswith(prefix)
            ]
        elif name in theirs:
            shapes = f"{list(theirs[name].shape)} there, {list(value.shape)} here"
            problems.append(f"{name} has another shape ({shapes})")
        else:
            problems.append(f"{name} is not there")
    for name in sorted(theirs.keys() - ours.keys()):
        if _matches(name, config.left_out):
            left_out.append(name)
        else:
            problems.append(f"{name} is there only")
    _check_patterns("fresh", config.fresh, ours)
    _check_patterns("left_out", config.left_out, theirs)
    if problems:
        raise UserError(
            f"begin.run: {source} does not fit this model: {'; '.join(problems)}; say with "
            "begin.fresh which parameters may begin at random, and with begin.left_out which of "
            "that run's have no use here"
        )
    for name in taken:
        ours[name].copy_(theirs[name])
    return WarmStart(str(source), tuple(taken), tuple(fresh), tuple(left_out))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(setting: str, patterns: Sequence[str], names: dict[str, Tensor]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"begin.{setting}: {pattern!r} is the name of no parameter")
