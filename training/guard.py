"""Bad steps: a loss or gradient that is no number, or a loss far above those before it.

All ranks judge the same numbers, those of the global batch, so they act alike. What happens then is
the settings' choice: stop, skip the step, or roll back to the last checkpoint; and in each case the
clips are written down, in `RUN/bad_steps.jsonl`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.shards import Batch
from tokenizer.settings import UserError
from training.loop_config import GuardConfig
from training.ranks import gathered, rank_and_world_size

REPORT = "bad_steps.jsonl"
_MOST_NAMED = 8
_NORMAL = 1.4826  # the median deviation of a normal distribution, times this, is its standard one


class Guard:
    """Judges each step of a run; its state goes with the checkpoints."""

    def __init__(self, config: GuardConfig, state: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._last: dict[str, deque[float]] = {}
        self.num_bad = 0
        if state is not None:
            self.remember(state)

    def state(self) -> dict[str, Any]:
        """What it remembers, as plain JSON values."""
        return {"bad_steps": self.num_bad, "losses": {k: list(v) for k, v in self._last.items()}}

    def remember(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; bad steps that were counted since are not forgotten."""
        self.num_bad = max(self.num_bad, int(state["bad_steps"]))
        self._last = {
            shapes: deque(losses, self._config.window) for shapes, losses in state["losses"].items()
        }

    def verdict(self, loss: float, norms: Sequence[float], shapes: str) -> str | None:
        """What is wrong with a step of these shapes, None if nothing is; then it is remembered."""
        if not math.isfinite(loss):
            return "the loss is not a number"
        if not all(map(math.isfinite, norms)):
            return "the gradient of the loss is not a number"
        if not self._config.spike:
            return None
        last = self._last.setdefault(shapes, deque(maxlen=self._config.window))
        if len(last) >= self._config.warmup:
            middle = median(last)
            deviation = _NORMAL * median(abs(each - middle) for each in last)
            if loss > middle + self._config.spike * max(deviation, 1e-3 * abs(middle)):
                return f"the loss ({loss:.4g}) is far above those of the last steps ({middle:.4g})"
        last.append(loss)
        return None

    def act(
        self, run: Path, step: int, position: int, reason: str, batches: Sequence[Batch], own: bool
    ) -> None:
        """Writes a bad step down; UserError when the run stops there.

        `own`: whether this rank's own loss is no number. Those clips are named then, or else all of
        the step.
        """
        self.num_bad += 1
        found = gathered((own, [name for batch in batches for name in _names(batch)]))
        blamed = [names for is_blamed, names in found if is_blamed]
        clips = [name for part in blamed or [names for _, names in found] for name in part]
        action = self._config.action
        is_over = action != "stop" and self.num_bad > self._config.budget
        if rank_and_world_size()[0] == 0:
            line = {"step": step + 1, "position": position, "reason": reason, "action": action}
            with open(run / REPORT, "a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"clips": clips}) + "\n")
        more = f" and {len(clips) - _MOST_NAMED} more" if len(clips) > _MOST_NAMED else ""
        told = f"step {step + 1}: {reason}, with clips {', '.join(clips[:_MOST_NAMED])}{more}"
        if is_over:
            raise UserError(
                f"{told}; it is the bad step number {self.num_bad}, guard.budget allows "
                f"{self._config.budget}: see {run / REPORT}"
            )
        if action == "stop":
            raise UserError(
                f"{told}; the weights of the last checkpoint are sound: lower "
                "optimizer.learning_rate, leave such clips out by data.where, or let such steps "
                "pass by guard.action"
            )


def _names(batch: Batch) -> list[str]:
    return [
        str(metadata.get("clip_id") or f"{batch.start + place} of the batch")
        for place, metadata in enumerate(batch.metadata)
    ]
