"""Training on Ray: Ray Train starts the processes, the loop in them is the same.

Needs an address (`launch.address` or RAY_ADDRESS) or starts a local Ray. The run folder must be
seen by all nodes; Ray itself only keeps its own bookkeeping, under RUN/ray. After a failure the
workers start again from the run's latest checkpoint.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from tokenizer.settings import UserError, from_dict, to_dict
from training.config import GeneratorRun, TokenizerRun
from training.launch.job import RunConfig, make_task, run_folder, run_job
from training.launch.torchrun import ended
from training.ranks import backend
from training.trainer import Trained

_KINDS: dict[str, type] = {"generator": GeneratorRun, "tokenizer": TokenizerRun}


def launch(config: RunConfig) -> Trained:
    """Trains on `launch.workers` Ray workers and waits; UserError when they give up."""
    folder = run_folder(config).resolve()
    # Settings that do not fit the data are found here, before any worker starts.
    make_task(config, "cpu", rank=0, world_size=config.launch.workers)
    kind = "generator" if isinstance(config, GeneratorRun) else "tokenizer"
    settings = to_dict(config) | {"out": str(folder)}
    settings["data"]["path"] = str(Path(settings["data"]["path"]).resolve())
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else lines come twice
    _connect(config.launch.address, config.launch.workers)
    on_gpu = _takes_gpus(config.trainer.device, config.launch.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"kind": kind, "settings": settings, "folder": os.getcwd()},
        scaling_config=ray.train.ScalingConfig(num_workers=config.launch.workers, use_gpu=on_gpu),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=config.launch.max_failures),
        ),
        torch_config=TorchConfig(backend=backend(on_gpu)),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"training on Ray failed: {reason}") from error
    return ended(config, folder)


def _connect(address: str | None, workers: int) -> None:
    """Joins the cluster at `address` or RAY_ADDRESS, or starts a Ray here, a CPU per worker."""
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address is not None:
            ray.init(address=address)
            return
        if "RAY_AUTH_MODE" not in os.environ:
            # Ray would write a new token to ~/.ray, which changes how later clusters start.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Without a dashboard, one of Ray's actors warns every second that it cannot ask it.
        quiet = ray.LoggingConfig(log_level="ERROR")
        ray.init(num_cpus=workers, include_dashboard=False, logging_config=quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{address or 'a local Ray'}: cannot be reached: {reason}") from error


def _takes_gpus(device: str, workers: int) -> bool:
    """Whether each worker gets a GPU of the cluster; UserError when it has too few for cuda."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and num_gpus < workers:
        raise UserError(
            f"trainer.device is cuda, but the cluster has {num_gpus} GPUs for {workers} workers"
        )
    return device != "cpu" and num_gpus >= workers


def _worker(task: dict[str, Any]) -> None:
    """One rank; Ray Train has initialised `torch.distributed`."""
    with suppress(OSError):  # Ray gave it a folder of its own; paths are those of who launched it
        os.chdir(task["folder"])
    config: RunConfig = from_dict(_KINDS[task["kind"]], task["settings"], "settings")
    run_job(config, local_rank=ray.train.get_context().get_local_rank())
