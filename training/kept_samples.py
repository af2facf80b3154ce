"""Samples that are in a folder already, as `tessera sample RUN --out DIR` left them.

    kept = KeptSamples.of(Path("SAMPLES"), run)
    kept.prompts, kept.bucket
    kept.decoded()                  # as if they had just been generated

What is decoded are the codes: there are videos of the first samples only, and they have losses.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenizer.door import check_codes
from tokenizer.settings import UserError
from training.run import OpenedRun
from training.sample_folder import SampleFolder
from training.samples import Generated

_BATCH = 32


@dataclass(frozen=True)
class KeptSamples:
    """Samples of a finished folder, from the first, which this run made."""

    run: OpenedRun
    folder: SampleFolder
    codes: Int[Tensor, "n l"]

    @classmethod
    def of(cls, path: Path, run: OpenedRun, num: int | None = None) -> KeptSamples:
        """All of them, or `num`; UserError for an unfinished, damaged or another run's folder."""
        folder = SampleFolder.finished(path)
        plan = folder.plan
        if plan.model != run.fingerprint:
            raise UserError(
                f"{path}: made by another run, or by other weights of this one ({plan.model[:12]} "
                f"of step {plan.step}, not {run.fingerprint[:12]} of step {run.step}); "
                "`tessera sample` this one into a new folder"
            )
        if plan.bucket not in run.record.shapes:
            raise UserError(
                f"{path}: clips of shape {plan.bucket}, and the run was trained on "
                f"{', '.join(run.record.shapes)}: there are no real ones to compare them with"
            )
        if num is not None and num > plan.num:
            raise UserError(f"{path}: holds {plan.num} samples, fewer than num_samples ({num})")
        codes = torch.from_numpy(folder.codes(range(num or plan.num)))
        check_codes(codes, run.schedule(plan.bucket), run.record.codebook_size)
        return cls(run, folder, codes)

    @property
    def bucket(self) -> str:
        return self.folder.plan.bucket

    @property
    def prompts(self) -> list[str | None]:
        return [self.folder.plan.prompt_of(number) for number in range(len(self.codes))]

    @property
    def settings(self) -> dict[str, Any]:
        """How they were drawn."""
        return self.folder.plan.settings

    def decoded(self) -> Generated:
        """The clips, and what it took to decode them."""
        started = time.perf_counter()
        schedule = self.run.schedule(self.bucket)
        device = next(self.run.generator.parameters()).device
        frames = [
            self.run.tokenizer.decode(part.to(device), schedule).cpu().numpy()
            for part in self.codes.split(_BATCH)
        ]
        return Generated(
            prompts=self.prompts,
            codes=self.codes.numpy(),
            frames=np.concatenate(frames),
            num_steps=self.folder.report()["num_steps"],
            seconds=time.perf_counter() - started,
        )
