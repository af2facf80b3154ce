"""Learning-rate schedules: a factor of the peak, as a pure function of the step."""

from __future__ import annotations

import math

from training.loop_config import ScheduleConfig


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The factor in [0, 1] for `step` of [0, num_steps)."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    span = max(num_steps - config.warmup_steps, 1)
    share = min((step - config.warmup_steps) / span, 1.0)
    return config.final_ratio + (1 - config.final_ratio) * _falling(config, share)


def _falling(config: ScheduleConfig, share: float) -> float:
    """From 1 at the end of the warm-up to 0 at the end of the run (constant: always 1)."""
    if config.kind == "linear":
        return 1 - share
    if config.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if config.kind == "wsd":
        return min(1.0, (1 - share) / max(1 - config.stable_share, 1e-9))
    return 1.0
