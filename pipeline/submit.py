"""Submission: commands run as jobs on a Ray cluster, through its Jobs API.

    client = connect_jobs("http://head:8265")
    job_id = submit_job(client, Job(("stats", "/shared/data")))
    exit_code = follow_job(client, job_id)

The cluster runs `python -m pipeline COMMAND`: the same command as here, so its machines need
Tessera installed and must see the same folders. What goes wrong between here and the cluster is
one `UserError` that says what to do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.cluster import WHERE_TOKENS_ARE, check_reachable, prepare_environment, token_source
from tokenizer.settings import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 130
FINAL_STATES = ("SUCCEEDED", "FAILED", "STOPPED")
SECONDS_BETWEEN_CONNECTIONS = 1.0


@dataclass(frozen=True)
class Job:
    """What to run: a command of `tessera`, and what it needs there."""

    command: tuple[str, ...]
    folder: Path | None = None
    """A small folder that is uploaded and is the command's working folder."""
    environment: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float | None = None
    """CPUs reserved for the command itself, beside those of the tasks that it starts."""
    num_gpus: float | None = None


class JobsClient:
    """Ray's job client for one dashboard; its errors become one `UserError` each."""

    def __init__(self, address: str, client: Any) -> None:
        self.address = address
        self.ray = client

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, an error of Ray or of the network is turned into a UserError."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as error:
            raise UserError(f"{self.address}: {_explain_refusal(str(error))}") from None
        except (RequestException, ConnectionError) as error:
            reason = _first_line(error)
            raise UserError(f"{self.address}: no Ray jobs API answers there: {reason}") from None
        except RuntimeError as error:
            raise UserError(f"{self.address}: {_first_line(error)}") from None


def connect_jobs(given: str | None) -> JobsClient:
    """The jobs API at the dashboard `given`, checked: it answers and takes our token.

    Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS if it is a URL, then this machine. Raises
    UserError.
    """
    address = dashboard_address(given)
    prepare_environment()
    parts = urlsplit(address)
    if not getproxies():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        check_reachable(str(parts.hostname), port, address)
    jobs = JobsClient(address, None)
    with jobs.explained(), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):  # uploads and closed sockets are no news
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        jobs.ray = JobSubmissionClient(address)
    return jobs


def dashboard_address(given: str | None) -> str:
    """The dashboard's URL; UserError for the address of something else."""
    from_environment = os.environ.get("RAY_API_SERVER_ADDRESS")
    if from_environment is None and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        from_environment = os.environ["RAY_ADDRESS"]
    shown = given or from_environment or DEFAULT_ADDRESS
    address = shown if "://" in shown else f"http://{shown}"
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return address.rstrip("/")
    except ValueError:
        pass
    raise UserError(
        f"--address ({shown!r}) must be the URL of the cluster's dashboard, such as "
        f"{DEFAULT_ADDRESS}; `ray dashboard cluster.yaml` forwards it to this machine"
    )


def submit_job(jobs: JobsClient, job: Job) -> str:
    """Sends a job and returns its id."""
    runtime_env: dict[str, Any] = {}
    if job.environment:
        runtime_env["env_vars"] = dict(job.environment)
    if job.folder is not None:
        runtime_env["working_dir"] = str(job.folder)
    with jobs.explained():
        return jobs.ray.submit_job(
            entrypoint=shlex.join(["python", "-m", "pipeline", *job.command]),
            runtime_env=runtime_env,
            metadata={"command": f"tessera {shlex.join(job.command)}"},
            entrypoint_num_cpus=job.num_cpus,
            entrypoint_num_gpus=job.num_gpus,
        )


def follow_job(jobs: JobsClient, job_id: str) -> int:
    """Prints a job's output as it comes; 0 when it succeeded, 1 when not, 130 on Ctrl-C."""
    try:
        with jobs.explained():
            jobs.ray.get_job_status(job_id)  # refuses an unknown id in one clear line
            state = asyncio.run(_interruptible(_stream(jobs.ray, job_id)))
            message = jobs.ray.get_job_info(job_id).message or ""
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(
            f"\njob {job_id} goes on without you\n"
            f"  follow it:  tessera submit logs {job_id} --address {jobs.address}\n"
            f"  stop it:    tessera submit stop {job_id} --address {jobs.address}",
            file=sys.stderr,
        )
        return INTERRUPTED
    if state == "SUCCEEDED":
        print(f"job {job_id} succeeded", flush=True)
        return 0
    print(f"job {job_id} {state.lower()}{_reason(message)}", file=sys.stderr)
    return 1


def stop_job(jobs: JobsClient, job_id: str) -> bool:
    """Asks a job to stop; False when it had already ended."""
    with jobs.explained():
        return bool(jobs.ray.stop_job(job_id))


async def _interruptible(waited_for: Coroutine[Any, Any, str]) -> str:
    """Cancelled by Ctrl-C even when it comes as the loop falls asleep.

    The handler of `asyncio.run` alone is called when the loop wakes next, which may be hours later.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    return await waited_for


async def _stream(client: Any, job_id: str) -> str:
    """Prints the log until the job has ended; a dropped connection resumes where it was."""
    from aiohttp import ClientError

    num_printed = 0
    while True:
        num_seen = 0
        try:
            async for chunk in client.tail_job_logs(job_id):
                print(chunk[max(num_printed - num_seen, 0) :], end="", flush=True)
                num_seen += len(chunk)
                num_printed = max(num_printed, num_seen)
        except (RuntimeError, ClientError) as error:
            if isinstance(error, RuntimeError) and "closed unexpectedly" not in str(error):
                raise
        state = str(client.get_job_status(job_id).value)
        if state in FINAL_STATES:
            return state
        await asyncio.sleep(SECONDS_BETWEEN_CONNECTIONS)


def _reason(message: str) -> str:
    """Ray's message without the log, which was printed already."""
    if "No module named pipeline" in message:
        return ": the `python` of the cluster's head has no Tessera; see docs/jobs.md"
    first = message.strip().partition("\n")[0].partition(", last available logs")[0]
    return f": {first}" if first else ""


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hides environment variables that Ray lets win over an address that was given."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _explain_refusal(reason: str) -> str:
    source = token_source()
    if "Forbidden" in reason:
        return f"the token in {source} is not this cluster's (HTTP 403): {WHERE_TOKENS_ARE}"
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return (
            "the cluster asks for a token (HTTP 401), but RAY_AUTH_MODE=disabled keeps it from "
            f"being sent: unset it, and {WHERE_TOKENS_ARE}"
        )
    return f"the cluster asks for a token (HTTP 401) and none was found: {WHERE_TOKENS_ARE}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
