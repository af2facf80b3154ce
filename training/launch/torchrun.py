"""Training in several processes of torchrun: gloo on CPUs, nccl on GPUs.

Either torchrun is given, `torchrun --nproc-per-node 2 -m training train CONFIG`, or
`--launch.kind torchrun --launch.workers 2` starts one on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tokenizer.settings import UserError, save_settings
from training.checkpoint import latest_checkpoint
from training.launch.job import RunConfig, run_folder, run_job
from training.ranks import backend
from training.trainer import Trained


def under_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def is_first() -> bool:
    """Whether this process is the one that speaks for the others."""
    return os.environ["RANK"] == "0"


def join(config: RunConfig) -> Trained:
    """This process's part in a run of torchrun."""
    on_gpu = config.trainer.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group(backend(on_gpu))
    trained = run_job(config, local_rank=int(os.environ["LOCAL_RANK"]))
    # Not in a `finally`: a rank that failed must not wait for the others here.
    dist.destroy_process_group()
    return trained


def start(config: RunConfig, command: str) -> Trained:
    """Runs `python -m training COMMAND` in `launch.workers` processes; UserError if one fails."""
    folder = run_folder(config)
    with tempfile.TemporaryDirectory(prefix="tessera-") as temporary:
        settings = Path(temporary) / "config.yaml"
        save_settings(config, settings)
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={config.launch.workers}", "-m", "training", command),
                str(settings),
            ],
            env={"OMP_NUM_THREADS": "1", **os.environ},
            check=False,
        )
    checkpoint = latest_checkpoint(folder)
    if finished.returncode or checkpoint is None:
        raise UserError(f"torchrun: a worker failed (exit code {finished.returncode}); see above")
    return Trained(config.trainer.num_steps, checkpoint)
