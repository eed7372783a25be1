"""Connection to Ray: the only place that starts Ray or joins a cluster."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

# Under `uv run` Ray would start every worker through uv. Ray reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Trials write nothing to their own folder: keep the working folder, so relative paths stay valid.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray
import ray._private.ray_constants
import ray._private.services

import trainable
from trainable.host.messages import one_line

if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":
    # A script or notebook imports Ray before this file, and Ray has then read its default.
    ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False

TOKEN_HINT = "uv run ray get-auth-token"


class ConnectError(RuntimeError):
    """There is no cluster at the address; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes, CPUs and GPUs for a study. `dashboard` is empty if Ray has none."""

    address: str
    dashboard: str
    num_nodes: int
    num_cpus: int
    num_gpus: int


def connect(address: str) -> Cluster:
    """Start Ray on this machine (`local`), or join the cluster here (`auto`) or at `host:port`.

    Never joins any other cluster. The code of `trainable` is sent to a cluster's nodes: they need
    the dependencies, but not this folder.

    Raises:
        ConnectError: there is no Ray cluster at the address.
    """
    if address.startswith("ray://"):
        raise ConnectError(
            "with ray:// a study ends when the connection breaks: use `ray job submit`, or "
            "--address HOST:PORT on a node of the cluster"
        )
    try:
        context = _start() if address == "local" else _join(address)
    except Exception as error:  # Ray raises a bare one where it does not start in time
        raise ConnectError(
            f"no Ray cluster at --address {address}: {one_line(error)}; start one with `ray start "
            f"--head`, or use --address local"
        ) from error
    resources = ray.cluster_resources()
    return Cluster(
        address=address,
        dashboard=context.dashboard_url or "",
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
    )


def _start() -> Any:
    """Start Ray on this machine."""
    # At its first start Ray writes a file with its token, which only this user may read.
    old = os.umask(0o077)
    try:
        with _separate_servers(), _interruptible():
            return ray.init(
                "local",
                include_dashboard=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    finally:
        os.umask(old)


def _join(address: str) -> Any:
    """Join a cluster, and send it the code of `trainable`."""
    _check_answers(address)
    code = Path(trainable.__file__).parent
    with _interruptible():
        return ray.init(
            address,
            runtime_env={"py_modules": [str(code)], "excludes": ["__pycache__"]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _separate_servers() -> Iterator[None]:
    """Start Ray's servers in their own process groups.

    `timeout`, SLURM and a closing terminal send signals to the driver's whole group. If the servers
    ended too, the driver would wait for them for a minute and die without saving. They still end
    with the driver, by the kernel's parent-death signal.
    """
    services: Any = ray._private.services
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; after the block if Ray's code has swallowed it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _check_answers(address: str) -> None:
    """Raise ConnectionError if nothing listens: Ray itself would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("the address must be local, auto or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=10):
        return


def disconnect() -> None:
    """Leave the cluster; stop it if it is local."""
    ray.shutdown()
