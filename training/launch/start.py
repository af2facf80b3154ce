"""Starts a run by the launcher of its settings, or joins the one that has started this process."""

from __future__ import annotations

from tokenizer.settings import UserError
from training.launch.job import RunConfig
from training.trainer import Trained


def start(config: RunConfig) -> Trained | None:
    """Where the run ended; None in all but the first of several processes.

    UserError when the run fails, or its launcher is not installed.
    """
    from training.launch import torchrun

    if torchrun.under_torchrun():
        trained = torchrun.join(config)
        return trained if torchrun.is_first() else None
    if config.launch.kind == "torchrun":
        return torchrun.start(config)
    if config.launch.kind == "ray":
        try:
            from training.launch import ray
        except ImportError:
            raise UserError(
                "launch.kind is ray, but Ray is not installed: pip install ray"
            ) from None
        return ray.launch(config)
    from training.launch import local

    return local.launch(config)
