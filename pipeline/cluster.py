"""The cluster: how a build reaches Ray, in one place.

    with connect(address=None, num_cpus=None) as cluster:
        ...                                   # ray.remote, ray.get

No address and no RAY_ADDRESS: a local Ray starts, and stops at the end. Otherwise the named cluster
is joined, and left running. What goes wrong on the way is one `UserError` that says what to do.

Ray checks a token: the caller needs the cluster's own, in RAY_AUTH_TOKEN, in the file that
RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token, and RAY_AUTH_MODE=token, or Ray does not send
it. `prepare_environment` sets the mode whenever a token is at hand. Ray reads these once, when it
is imported, so this module imports it late, and tells a Ray that was imported before.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.settings import UserError

CONNECT_SECONDS = 5.0
TOKEN_FILE = Path(".ray") / "auth_token"
WHERE_TOKENS_ARE = (
    "put the cluster's token (`ray get-auth-token` on its head) into ~/.ray/auth_token, "
    "or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
)


@dataclass(frozen=True)
class Cluster:
    """A Ray that answers: its address, its CPUs, and whether it is ours to stop."""

    address: str
    num_cpus: int
    is_local: bool


@contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[Cluster]:
    """Joins the cluster at `address` (default: RAY_ADDRESS), or starts a local Ray for the while.

    `num_cpus` limits a local Ray and is not used on a cluster. A Ray that this process has already
    joined is used as it is. Raises UserError when the cluster does not answer or refuses the token.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        prepare_environment()
    ray = _import_ray()
    if ray.is_initialized():
        yield _describe(ray, is_local=False)
        return
    if address is not None and address != "local":
        _join(ray, address)
        try:
            yield _describe(ray, is_local=False)
        finally:
            ray.shutdown()
        return
    folder = "/tmp" if os.path.isdir("/tmp") else None  # Ray's socket paths must stay short
    with tempfile.TemporaryDirectory(
        prefix="tessera-ray-", dir=folder, ignore_cleanup_errors=True
    ) as temporary:
        _start(ray, num_cpus, temporary)
        try:
            yield _describe(ray, is_local=True)
        finally:
            ray.shutdown()


def prepare_environment() -> None:
    """Turns token authentication on when a token is at hand and the mode is not set.

    Raises UserError when the mode is set to something that Ray would take for "disabled", or when
    it is `token` and there is none.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is None:
        if token_source() is not None:
            os.environ["RAY_AUTH_MODE"] = "token"
            _refresh_imported_ray()
        return
    if mode.lower() not in ("token", "disabled", "k8s"):
        raise UserError(f"RAY_AUTH_MODE ({mode!r}) must be token, k8s or disabled")
    if mode.lower() == "token" and token_source() is None:
        raise UserError(f"RAY_AUTH_MODE is token, but no token was found: {WHERE_TOKENS_ARE}")


def token_source() -> str | None:
    """Where Ray would find a token, in its order; None when nowhere."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / TOKEN_FILE
    if path.is_file() and path.stat().st_size:
        return str(path)
    if named:
        raise UserError(f"RAY_AUTH_TOKEN_PATH names {named}, which is not a file with a token")
    return None


def check_reachable(host: str, port: int, shown: str) -> None:
    """UserError when nothing listens there; Ray itself would go on trying for minutes."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        raise UserError(
            f"{shown}: no Ray cluster answers there ({reason}); check the address, that the "
            "cluster is up, and that the port can be reached from here"
        ) from None


def _refresh_imported_ray() -> None:
    """Has a Ray that is already imported read the mode again, as Ray does after changing it."""
    if "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # a refused token: 5 s, not 20
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray


def _join(ray: Any, address: str) -> None:
    host, port = _host_and_port(address)
    if host is not None:
        check_reachable(host, port, address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError:
        if host is None:
            raise UserError(f"{address}: no Ray runs on this machine; give HOST:PORT") from None
        raise UserError(
            f"{address}: a server listens there, but does not let this process join; "
            f"{_token_advice()}; or the port is not that of Ray's control service (6379 by default)"
        ) from None
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise UserError(f"{address}: cannot join this Ray: {_first_line(error)}") from None


def _start(ray: Any, num_cpus: int | None, temporary: str) -> None:
    if "RAY_AUTH_MODE" not in os.environ and token_source() is None:
        # Ray would write a new token to ~/.ray, which changes how later clusters start.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=temporary,
        )
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise UserError(
            f"a local Ray does not start: {_first_line(error)}; "
            "run without it by --executor inline, or name a cluster by --ray_address"
        ) from None


def _describe(ray: Any, is_local: bool) -> Cluster:
    address = ray.get_runtime_context().gcs_address
    return Cluster(address, int(ray.cluster_resources().get("CPU", 0)), is_local)


def _host_and_port(address: str) -> tuple[str | None, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return None, 0
    if not host or "/" in host or not port.isdigit():
        raise UserError(
            f"ray_address ({address!r}) must be HOST:PORT of the head's control service, such as "
            "10.0.0.1:6379, or auto; the address of the dashboard (http://...) is for `submit`"
        )
    return host.strip("[]"), int(port)


def _token_advice() -> str:
    source = token_source()
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and source is not None:
        return "RAY_AUTH_MODE=disabled keeps the token from being sent: unset it"
    if source is not None:
        return f"perhaps the token in {source} is not this cluster's: {WHERE_TOKENS_ARE}"
    return f"perhaps it asks for a token: {WHERE_TOKENS_ARE}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
