"""Reaching Ray: a local one leaves nothing behind, and what does not answer is one clear line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cluster import _host_and_port, check_reachable
from tokenizer.settings import UserError

RAY_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

CONNECT = """
import os, sys, tempfile
from tokenizer.settings import UserError
from pipeline.cluster import connect
made, make = [], tempfile.mkdtemp
tempfile.mkdtemp = lambda *args, **more: made.append(make(*args, **more)) or made[-1]
try:
    with connect(sys.argv[1] or None, 1) as cluster:
        import ray
        print(cluster.is_local, cluster.num_cpus, ray.get(ray.remote(lambda: 6 * 7).remote()))
    with connect(sys.argv[1] or None, 1) as again:
        print(again.is_local)
    print(len(made), sum(map(os.path.exists, made)))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def connect_in_a_process(address: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in RAY_VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", CONNECT, address],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
    )


@contextmanager
def listener() -> Iterator[int]:
    """A port where something listens and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_addresses_are_host_and_port() -> None:
    assert _host_and_port("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert _host_and_port("[::1]:6379") == ("::1", 6379)
    assert _host_and_port("ray://head:10001") == ("head", 10001)
    assert _host_and_port("auto") == (None, 0)
    for wrong in ("head", "http://head:8265", ":6379", "head:port"):
        with pytest.raises(UserError, match=r"must be HOST:PORT"):
            _host_and_port(wrong)


def test_a_silent_address_is_asked_once_and_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as port:
        check_reachable("127.0.0.1", port, "here")
    waits, connect = [], socket.create_connection
    monkeypatch.setattr(
        socket,
        "create_connection",
        lambda place, timeout: waits.append(timeout) or connect(place, timeout),
    )
    with pytest.raises(UserError, match=r"here: no Ray cluster answers there \(Connection refused"):
        check_reachable("127.0.0.1", port, "here")
    assert waits == [5.0]


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_starts_by_itself_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = connect_in_a_process("", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "1", "42", "True", "2", "0"]  # two folders, none left
    assert list(tmp_path.iterdir()) == []  # no token in ~/.ray, which would change later clusters


@pytest.mark.ray
@pytest.mark.slow
def test_an_address_without_ray_is_one_line(tmp_path: Path) -> None:
    with listener() as port:
        pass
    result = connect_in_a_process(f"127.0.0.1:{port}", tmp_path)
    assert result.returncode == 2
    assert "no Ray cluster answers there" in result.stderr
    assert len(result.stderr.splitlines()) == 1
