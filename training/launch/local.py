"""Training in this process."""

from __future__ import annotations

from training.launch.job import RunConfig, run_job
from training.ranks import alone
from training.run import pick_device
from training.trainer import Trained


def launch(config: RunConfig) -> Trained:
    """Trains to the end and says where it ended."""
    with alone(pick_device(config.trainer.device) == "cuda"):
        return run_job(config)
