"""A trace of some steps on request, for chrome://tracing or Perfetto: `OUT/profile/*.json.gz`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.loop_config import TrainerConfig


class Profile:
    """Records the steps of `trainer.profile_steps` on the first rank."""

    def __init__(self, run: Path, config: TrainerConfig, is_first: bool) -> None:
        self._folder = run / "profile"
        self._steps = config.profile_steps if is_first else ()
        self._profiler: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, counted from 1."""
        if self._steps and number == self._steps[0]:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(
                activities=activities, record_shapes=True, acc_events=True
            )
            self._profiler.start()
        yield
        if self._profiler is not None and number >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Writes what was recorded, if anything."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        self._folder.mkdir(exist_ok=True)
        first, last = self._steps
        profiler.export_chrome_trace(str(self._folder / f"steps_{first}_{last}.json.gz"))
