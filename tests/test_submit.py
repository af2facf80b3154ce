"""Jobs: settings are checked here, paths travel absolute, and a real cluster runs what is sent."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import submit_cli
from pipeline.cluster import prepare_environment, token_source
from pipeline.submit import _explain_refusal, _interruptible, dashboard_address
from pipeline.submit_cli import SUBMITTABLE, environment_of, job_settings
from tokenizer.settings import UserError

BIN = Path(sys.executable).parent
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
RAY_VARIABLES = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
)


@pytest.fixture
def no_ray_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in RAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_paths_become_absolute_and_urls_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "build.yaml"
    config.write_text("sources: [videos/*.mp4, 's3://bucket/a']\nout: data\nray_address: a:1\n")
    settings = job_settings(SUBMITTABLE["build"], config, {"tokenize.tokenizer": "tok"})
    assert settings.sources == (f"{tmp_path}/videos/*.mp4", "s3://bucket/a")
    assert settings.out == f"{tmp_path}/data"
    assert settings.tokenize.tokenizer == f"{tmp_path}/tok"
    assert settings.ray_address is None


def settings_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, type) of every setting."""
    for field in fields(cls):
        inner = field.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            yield from settings_keys(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, str(field.type)


NO_PATHS = {
    *("ray_address", "launch.address"),
    *("screen.drop", "select.drop", "clips.buckets"),
    *("captions.template", "captions.coca_model", "captions.coca_device", "tokenize.device"),
    *("data.token_set", "data.buckets", "data.batch_sizes", "data.bucket_weights"),
    *("data.split", "data.validation_split", "data.where"),
    *("condition.model", "condition.weights_sha256", "lpips.vgg_sha256", "lpips.heads_sha256"),
    *("begin.fresh", "begin.left_out", "trainer.wandb"),
}
"""Settings of text that name no file or folder."""


@pytest.mark.parametrize("name", SUBMITTABLE)
def test_every_setting_of_text_is_known_as_a_path_or_as_none(name: str) -> None:
    submittable = SUBMITTABLE[name]
    keys = dict(settings_keys(submit_cli._config_class(submittable)))
    assert set(submittable.paths) <= set(keys)
    assert set(submittable.without) <= set(keys)
    texts = {key for key, kind in keys.items() if "str" in kind and "Literal" not in kind}
    assert texts - NO_PATHS == set(submittable.paths)


def test_further_datasets_of_a_training_job_become_absolute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "train.yaml"
    config.write_text("out: run\ndata: {path: a, mixture: {b: 0.5, 's3://c/d': 2}}\n")
    settings = job_settings(SUBMITTABLE["train"], config, {})
    assert settings.data.mixture == {f"{tmp_path}/b": 0.5, "s3://c/d": 2.0}


def test_a_training_job_must_say_where_its_run_goes(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("data: {path: data}\n")
    with pytest.raises(UserError, match=r"'out' is required in a job.*give --out FOLDER"):
        job_settings(SUBMITTABLE["train"], config, {})


def test_environment_variables_are_checked() -> None:
    assert environment_of(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1", "A B=1"):
        with pytest.raises(UserError, match="must read KEY=VALUE"):
            environment_of([wrong])


@pytest.mark.usefixtures("no_ray_variables")
def test_the_address_is_a_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    assert dashboard_address("head:8265/") == "http://head:8265"
    assert dashboard_address("https://head") == "https://head"
    for wrong in ("ray://head:10001", "http://", "http://head:port"):
        with pytest.raises(UserError, match="must be the URL of the cluster's dashboard"):
            dashboard_address(wrong)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
    assert dashboard_address(None) == "http://other:8265"
    assert dashboard_address("http://given:1") == "http://given:1"


@pytest.mark.usefixtures("no_ray_variables")
def test_a_token_at_hand_turns_authentication_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert token_source() is None
    prepare_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t" * 64)
    assert token_source() == str(tmp_path / ".ray" / "auth_token")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert token_source() == "RAY_AUTH_TOKEN"


@pytest.mark.usefixtures("no_ray_variables")
def test_a_wrong_token_setup_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match="no token was found: put the cluster's token"):
        prepare_environment()
    monkeypatch.setenv("RAY_AUTH_MODE", "tokn")
    with pytest.raises(UserError, match="'tokn'"):
        prepare_environment()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(UserError, match="/nowhere/token, which is not a file"):
        token_source()


@pytest.mark.usefixtures("no_ray_variables")
def test_a_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HTTP 401) and none was found" in _explain_refusal("Authentication required: ...")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert "RAY_AUTH_TOKEN is not this cluster's" in _explain_refusal("failed: Forbidden: Invalid")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_MODE=disabled keeps it" in _explain_refusal("Authentication required: ...")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: [v]\nout: d\nselct: {}\n", "unknown key 'selct'; did you mean 'select'?"),
        ("sources: [v]\nout: d\nclips: {fps: -1}\n", "fps (-1.0) must be above 0"),
    ],
)
def test_a_wrong_config_is_found_before_anything_is_sent(
    content: str, message: str, tmp_path: Path
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(content)
    parser = argparse.ArgumentParser()
    submit_cli.register(parser.add_subparsers())
    # Nobody listens there: an attempt to connect would be another error.
    words = ["submit", "build", str(config), "--address", "http://127.0.0.1:9"]
    arguments = parser.parse_args(words)
    with pytest.raises(UserError) as error:
        arguments.run(arguments)
    assert message in str(error.value)


# A real cluster with a token, from here on.


@dataclass(frozen=True)
class Head:
    """A running head node: where its jobs API is, and its token."""

    url: str
    token: str
    folder: Path

    def tessera(self, *words: str, token: str | None = "", **env: str) -> Any:
        """Runs a command of `tessera` as its own process, with the cluster's token by default."""
        process = self.start(*words, token=token, **env)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words: str, token: str | None = "", **env: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if name not in RAY_VARIABLES}
        if token is not None:
            kept["RAY_AUTH_TOKEN"] = token or self.token
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words],
            env=kept | QUIET | {"HOME": str(self.folder)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` in a session of its own, stopped by its process group."""
    folder = Path(tempfile.mkdtemp(prefix="tessera-head-", dir="/tmp"))  # socket paths are short
    ports = free_ports(5)
    token = secrets.token_hex(32)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports)]
    environment = {name: v for name, v in os.environ.items() if name not in RAY_VARIABLES}
    environment |= QUIET | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # a job runs the `python` it finds
        "HOME": str(folder),
    }
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", *options),
                *("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"),
                *("--include-dashboard=true", "--disable-usage-stats"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{ports[1]}"
            _wait_for_dashboard(url, token, process, folder / "head.log")
            yield Head(url, token, folder)
        finally:
            process.terminate()  # it ends its own children in order; the group is for the rest
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=4)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_dashboard(url: str, token: str, process: Any, log: Path) -> None:
    request = urllib.request.Request(
        f"{url}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == http.HTTPStatus.OK:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no dashboard after a minute: {log.read_text()}")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with random weights: enough to make codes."""
    import torch

    from tokenizer.config import TokenizerConfig
    from tokenizer.folder import save_tokenizer
    from tokenizer.model import Tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(Tokenizer(TokenizerConfig()), folder)
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_builds_trains_and_counts_what_was_submitted(
    head: Head, small_videos: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    config = tmp_path / "build.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "sources": [str(small_videos)],
                "out": "replaced by a flag",
                "select": {"val_share": 0.3},
                "tokenize": {"tokenizer": str(tokenizer_folder), "batch_size": 4},
            }
        )
    )
    built = head.tessera(
        *("submit", "build", str(config), "--address", head.url, "--out", str(data)),
        *("--env", "TESSERA_TEST=1"),
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "submitted to" in built.stdout.splitlines()[0]
    assert "finalize:" in built.stdout  # the job's own output, streamed
    assert (data / "_SUCCESS").exists()
    assert yaml.safe_load((data / "config.yaml").read_text())["sources"] == [str(small_videos)]

    trained = head.tessera(
        *("submit", "train", "demo", "--address", head.url, "--data", str(data)),
        *("--out", str(run), "--trainer.num_steps", "2", "--trainer.global_batch_size", "4"),
        *("--method.name", "next_scale", "--method.num_steps", "null"),
        *("--model.width", "48", "--model.depth", "2", "--launch.kind", "ray"),
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "trained 2 steps" in trained.stdout
    assert list((run / "checkpoints").iterdir()) or list(run.glob("*checkpoint*"))

    counted = head.tessera("submit", "stats", str(data), "--address", head.url)
    assert counted.returncode == 0, counted.stdout + counted.stderr
    assert "perplexity" in counted.stdout
    assert "error:open" in counted.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_failed_job_fails_here_too(head: Head, tmp_path: Path) -> None:
    result = head.tessera("submit", "stats", str(tmp_path / "no"), "--address", head.url)
    assert result.returncode == 1
    assert "no such folder" in result.stdout
    assert "failed: Job entrypoint command failed with exit code 2" in result.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "asks for a token (HTTP 401)"), ("wrong", "is not this cluster's (HTTP 403)")],
)
def test_without_the_clusters_token_one_line_says_what_to_do(
    head: Head, token: str | None, message: str
) -> None:
    result = head.tessera("submit", "stats", "/", "--address", head.url, token=token)
    assert result.returncode == 2
    assert message in result.stderr
    assert "ray get-auth-token" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(head: Head) -> None:
    code = (
        "import sys; from ray.job_submission import JobSubmissionClient as C\n"
        "print(C(sys.argv[1]).submit_job(entrypoint='echo begun; sleep 120'))"
    )
    environment = os.environ | QUIET | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
    job_id = subprocess.run(
        [sys.executable, "-c", code, head.url],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()[-1]
    follower = head.start("submit", "logs", job_id, "--address", head.url)
    assert follower.stdout is not None
    for line in follower.stdout:
        if line.strip() == "begun":
            break
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert f"tessera submit stop {job_id} --address {head.url}" in err
    stopped = head.tessera("submit", "stop", job_id, "--address", head.url)
    assert stopped.stdout.strip() == f"job {job_id} is stopping"
    followed = head.tessera("submit", "logs", job_id, "--address", head.url)
    assert followed.returncode == 1
    assert "begun" in followed.stdout
    assert f"job {job_id} stopped" in followed.stderr


def test_ctrl_c_wakes_a_follower_that_has_fallen_asleep() -> None:
    """A signal that another thread receives does not wake the one that waits for messages."""

    def interrupt() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    async def silence() -> str:
        await asyncio.sleep(30)
        return "too late"

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
        asyncio.run(_interruptible(silence()))
    assert time.monotonic() - started < 15
    thread.join()


@pytest.mark.ray
@pytest.mark.slow
def test_no_wait_leaves_and_an_unknown_job_is_one_line(head: Head, tmp_path: Path) -> None:
    sent = head.tessera("submit", "stats", str(tmp_path), "--address", head.url, "--no-wait")
    assert sent.returncode == 0
    assert "follow it:  tessera submit logs raysubmit_" in sent.stdout
    unknown = head.tessera("submit", "logs", "raysubmit_nobody", "--address", head.url)
    assert unknown.returncode == 2
    assert "raysubmit_nobody does not exist" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1
