"""The command `tessera submit`: build, train, tokenizer train or stats as a job on a Ray cluster.

The settings are read and checked here, before anything is sent. What is sent is the effective
`config.yaml` with its paths made absolute; data never travels. Loads Ray when a job is sent, not
before.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizer.settings import (
    UserError,
    add_flags,
    config_file,
    given_flags,
    read_settings,
    save_settings,
)


@dataclass(frozen=True)
class Submittable:
    """A command that takes a config file: its settings and which of their keys are paths."""

    command: tuple[str, ...]
    summary: str
    config_class: str
    """MODULE:CLASS, loaded by name, because pipeline never imports training."""
    paths: tuple[str, ...]
    required: tuple[str, ...]
    """Paths whose default would lie in the job's own folder, which goes when the job ends."""
    without: tuple[str, ...]
    """Keys that name a Ray of this machine; a job uses the cluster that it runs on."""
    trains: bool = False
    """Takes `--data`, as the training commands do here."""


SUBMITTABLE = {
    "build": Submittable(
        command=("build",),
        summary="make a dataset",
        config_class="pipeline.config:BuildConfig",
        paths=(
            *("sources", "out", "reuse", "captions.coca_weights", "shots.transnet_weights"),
            *("tokenize.tokenizer", "tokenize.further"),
        ),
        required=(),
        without=("ray_address",),
    ),
    "train": Submittable(
        command=("train",),
        summary="train a generator",
        config_class="training.config:GeneratorRun",
        paths=(
            *("out", "data.path", "data.mixture", "data.captions", "begin.run"),
            "condition.weights",
        ),
        required=("out", "data.path"),
        without=("launch.address",),
        trains=True,
    ),
    "tokenizer": Submittable(
        command=("tokenizer", "train"),
        summary="train a tokenizer",
        config_class="training.config:TokenizerRun",
        paths=(
            *("out", "data.path", "data.mixture", "data.captions", "result", "begin.folder"),
            *("lpips.vgg", "lpips.heads"),
        ),
        required=("data.path",),
        without=("launch.address",),
        trains=True,
    ),
}

_EXAMPLE = """\
examples:
  tessera submit build build.yaml --address http://head:8265 --out /shared/data
  tessera submit train train.yaml --data /shared/data --out /shared/run --no-wait
  tessera submit stats /shared/data
  tessera submit logs raysubmit_X7mK2f9Q --address http://head:8265

A cluster with a token (the default of new Rays) wants it here too: docs/jobs.md.
"""


def register(commands: Any) -> None:
    """Adds `submit` and its own commands."""
    parser = commands.add_parser(
        "submit",
        help="run a command as a job on a Ray cluster",
        description="Runs a command as a job on a Ray cluster, prints the job's id and its output, "
        "and ends with its status. Ctrl-C leaves the job running.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="COMMAND")
    for name, submittable in SUBMITTABLE.items():
        job = _add_job(jobs, name, submittable.summary)
        job.add_argument("target", metavar="CONFIG", help="the command's YAML file, or a preset")
        if submittable.trains:
            _add_training(job)
        add_flags(job, _config_class(submittable), ("data.path",) if submittable.trains else ())
        job.set_defaults(run=_submit_config, submittable=submittable)
    stats = _add_job(jobs, "stats", "print what is in a dataset")
    stats.add_argument("target", metavar="DIR", help="the dataset folder, as the cluster sees it")
    stats.set_defaults(run=_submit_stats)
    for name, summary, run in (
        ("logs", "follow a job's output and end with its status", _logs),
        ("stop", "stop a job", _stop),
    ):
        other = jobs.add_parser(name, help=summary)
        other.add_argument("job_id", metavar="JOB", help="the id that submit printed")
        _add_address(other)
        other.set_defaults(run=run)


def job_settings(submittable: Submittable, path: Path, overrides: Mapping[str, Any]) -> Any:
    """The effective settings of a job, every path absolute; UserError when they are unfit."""
    settings: Any = read_settings(_config_class(submittable), path, overrides)
    for key in submittable.required:
        if not _get(settings, key):
            raise UserError(
                f"{path}: '{key}' is required in a job, whose own folder goes when it ends; "
                f"give --{key.removesuffix('.path')} FOLDER on storage that the whole cluster sees"
            )
    for key in submittable.paths:
        value = _get(settings, key)
        if isinstance(value, str):
            settings = _with(settings, key, absolute(value))
        elif isinstance(value, dict):
            settings = _with(settings, key, dict(_absolute_one(*each) for each in value.items()))
        elif value is not None:
            settings = _with(settings, key, tuple(absolute(each) for each in value))
    for key in submittable.without:
        settings = _with(settings, key, None)
    return settings


def absolute(path: str) -> str:
    """A path made absolute, globs and all; a URL stays as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_one(name: str, value: str | float) -> tuple[str, str | float]:
    """Of a table of paths by name, or of weights by path."""
    return (name, absolute(value)) if isinstance(value, str) else (absolute(name), value)


def environment_of(pairs: list[str]) -> dict[str, str]:
    """`["KEY=VALUE"]` as a mapping; UserError for anything else."""
    environment = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UserError(f"--env {pair}: must read KEY=VALUE, such as --env OMP_NUM_THREADS=8")
        environment[key] = value
    return environment


def _add_job(jobs: Any, name: str, summary: str) -> Any:
    job = jobs.add_parser(
        name,
        help=f"{summary}, on the cluster",
        description=f"Runs `{name}` as a job on a Ray cluster: {summary}. Prints the job's id and "
        "its output, and ends with its status. Ctrl-C leaves the job running.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_address(job)
    job.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    job.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an environment variable of the job; may be given several times",
    )
    for kind in ("cpus", "gpus"):
        job.add_argument(
            f"--entrypoint-num-{kind}",
            type=float,
            metavar="N",
            help=f"{kind.upper()[:-1]}s reserved for the command itself, beside those of the tasks "
            "that it starts (default: 0)",
        )
    return job


def _add_training(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--data",
        dest="override:data.path",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="the dataset folder, as the cluster sees it",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if it is a "
        "URL, or http://127.0.0.1:8265)",
    )


def _submit_config(arguments: argparse.Namespace) -> int:
    submittable: Submittable = arguments.submittable
    path = config_file(arguments.target, _presets(submittable))
    settings = job_settings(submittable, path, given_flags(arguments))
    with tempfile.TemporaryDirectory(prefix="tessera-submit-") as folder:
        save_settings(settings, Path(folder) / "config.yaml")
        return _submit(arguments, (*submittable.command, "config.yaml"), Path(folder))


def _submit_stats(arguments: argparse.Namespace) -> int:
    return _submit(arguments, ("stats", absolute(arguments.target)), None)


def _submit(arguments: argparse.Namespace, command: tuple[str, ...], folder: Path | None) -> int:
    environment = environment_of(arguments.env)
    from pipeline.submit import Job, connect_jobs, follow_job, submit_job

    jobs = connect_jobs(arguments.address)
    job = Job(
        command=command,
        folder=folder,
        environment=environment,
        num_cpus=arguments.entrypoint_num_cpus,
        num_gpus=arguments.entrypoint_num_gpus,
    )
    job_id = submit_job(jobs, job)
    print(f"job {job_id} submitted to {jobs.address}", flush=True)
    if arguments.no_wait:
        print(f"follow it:  tessera submit logs {job_id} --address {jobs.address}")
        return 0
    return follow_job(jobs, job_id)


def _logs(arguments: argparse.Namespace) -> int:
    from pipeline.submit import connect_jobs, follow_job

    return follow_job(connect_jobs(arguments.address), arguments.job_id)


def _stop(arguments: argparse.Namespace) -> int:
    from pipeline.submit import connect_jobs, stop_job

    was_running = stop_job(connect_jobs(arguments.address), arguments.job_id)
    print(f"job {arguments.job_id} {'is stopping' if was_running else 'had already ended'}")
    return 0


def _config_class(submittable: Submittable) -> type:
    module, _, name = submittable.config_class.partition(":")
    return getattr(importlib.import_module(module), name)


def _presets(submittable: Submittable) -> Path:
    module = submittable.config_class.partition(":")[0]
    return Path(str(importlib.import_module(module).__file__)).parent / "presets"


def _get(settings: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        settings = getattr(settings, name)
    return settings


def _with(settings: Any, dotted: str, value: Any) -> Any:
    name, _, rest = dotted.partition(".")
    return replace(
        settings, **{name: _with(getattr(settings, name), rest, value) if rest else value}
    )
