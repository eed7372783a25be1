"""Where a study runs: the only place that starts Ray or joins a cluster."""

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

# A driver under `uv run` would make Ray start every worker through uv. Read when Ray is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Trials report rows, nothing is written to their folder: relative paths go on meaning the same.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray
import ray._private.ray_constants
import ray._private.services

import trainable

if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":
    # A script or notebook imports Ray before this file, and Ray has then read its default.
    ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False

TOKEN_HINT = "uv run ray get-auth-token"


class ConnectError(RuntimeError):
    """There is no cluster at the address; the message says what to type."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a study has to run on. `dashboard` is empty where Ray has none."""

    address: str
    dashboard: str
    num_nodes: int
    num_cpus: int
    num_gpus: int


def connect(address: str) -> Cluster:
    """Start Ray on this machine (`local`), or join the cluster here (`auto`) or at `host:port`.

    Never joins a cluster that was not asked for. On a cluster the code of `trainable` travels
    with the study, so that its nodes need the dependencies but not this folder.

    Raises:
        ConnectError: nothing answers at the address.
    """
    if address.startswith("ray://"):
        raise ConnectError(
            "ray:// ends the study when its connection breaks: use `ray job submit`, or "
            "--address HOST:PORT from a node of the cluster"
        )
    try:
        if address == "local":
            # The token's file is made by Ray at its first start: for this user's eyes only.
            old = os.umask(0o077)
            try:
                with _servers_apart(), _interrupt_kept():
                    context = ray.init(
                        "local",
                        include_dashboard=True,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
            finally:
                os.umask(old)
        else:
            _check_answers(address)
            code = Path(trainable.__file__).parent
            with _interrupt_kept():
                context = ray.init(
                    address,
                    runtime_env={"py_modules": [str(code)], "excludes": ["__pycache__"]},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (OSError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())[:300]
        raise ConnectError(
            f"no Ray cluster at --address {address}: {what}; start one with `ray start --head`, "
            f"or use --address local"
        ) from error
    resources = ray.cluster_resources()
    return Cluster(
        address=address,
        dashboard=context.dashboard_url or "",
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
    )


@contextmanager
def _servers_apart() -> Iterator[None]:
    """Start Ray's servers in process groups of their own.

    `timeout`, SLURM and a closing terminal signal the driver's whole group: without its servers the
    driver would wait for them for a minute and then die, instead of keeping what there is. They
    still end with the driver, by the kernel's parent-death signal.
    """
    services: Any = ray._private.services
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextmanager
def _interrupt_kept() -> Iterator[None]:
    """Ctrl-C ends what is inside, or comes after it where Ray's own code has caught the error."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
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
    """Raises ConnectionError where nothing listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("it must be local, auto or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=10):
        return


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()
