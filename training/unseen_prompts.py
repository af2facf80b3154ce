"""Unseen prompts: those of split val that a run was never trained on.

prompts = unseen_prompts(run, held_out, data_dir)
prompts.new             # what to sample
prompts.trained_on      # how many others the run has seen, whatever their case or spacing
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizer.settings import UserError
from training.data import open_sources, prompts_in
from training.real_clips import Clips, fits
from training.run import OpenedRun


@dataclass(frozen=True)
class UnseenPrompts:
    """The prompts of a split that are new to a run, and how many are left out, and why."""

    new: tuple[str, ...]
    trained_on: int
    not_taken: int
    """With words that no training caption has, or longer than the run takes."""

    def said(self) -> str:
        return (
            f"{len(self.new)} prompts of split val are new to the run; left out: "
            f"{self.trained_on} that it was trained on, {self.not_taken} with words that it does "
            "not know or too long"
        )


def unseen_prompts(run: OpenedRun, held_out: Clips, data_dir: Path) -> UnseenPrompts:
    """The distinct prompts of the held-out clips that none of the run's training clips had.

    Raises UserError when there are none.
    """
    vocabulary = run.vocabulary
    if vocabulary.kind == "none":
        raise UserError("prompts_of val: this run has no condition and so no prompts")
    data = replace(run.config.data, path=str(data_dir))
    _, sources = open_sources(data)
    trained = {
        tuple(vocabulary.encode(each, cut=True))
        for each in set(prompts_in(sources, vocabulary.kind, data.damaged == "skip"))
        if each is not None
    }
    distinct = sorted({each for each in held_out.prompts if each is not None})
    taken = [each for each in distinct if fits(vocabulary, each)]
    new = tuple(each for each in taken if tuple(vocabulary.encode(each)) not in trained)
    found = UnseenPrompts(new, len(taken) - len(new), len(distinct) - len(taken))
    if not new:
        raise UserError(
            f"{data_dir}: none of the {len(distinct)} prompts of split val is new to this run and "
            f"can be sampled ({found.trained_on} trained on, {found.not_taken} with unknown words "
            "or too long); build it with --select.hold_out caption and train on that"
        )
    return found
