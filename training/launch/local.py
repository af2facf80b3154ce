"""Training in this process."""

from __future__ import annotations

from training.launch.job import RunConfig, run_job
from training.trainer import Trained


def launch(config: RunConfig) -> Trained:
    """Trains to the end and says where it ended."""
    return run_job(config)
