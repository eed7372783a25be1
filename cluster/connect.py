"""Connection to Ray: the only place that starts Ray or joins a cluster."""

import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

# Under `uv run` Ray would start every worker through uv. Ray reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Trials write nothing to their own folder: keep the working folder, so relative paths stay valid.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import grpc
import ray
import ray._private.ray_constants
import ray._private.services
import ray._private.state
import ray._private.worker
import ray._raylet
from ray.experimental.internal_kv import _internal_kv_get
from ray.job_config import JobConfig

import trainable
from trainable.host import credentials
from trainable.host.messages import one_line

if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":
    # A script or notebook imports Ray before this file, and Ray has then read its default.
    ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False

# What workers need of the driver's environment. Anyone who sees the dashboard can read it.
TRAVELLING = (
    *("DATA_CACHE_DIR", "TORCH_HOME", "HF_HOME"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
)
logger = logging.getLogger(__name__)

ANSWER_S = 6.0  # for a head to answer: to listen, and to speak gRPC
TOKEN_HINT = "uv run ray get-auth-token"


class ConnectError(RuntimeError):
    """There is no cluster at the address; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes, CPUs and GPUs for a study. `dashboard` is empty if Ray has none.

    `grows`: Ray starts more nodes when trials wait for them. `cpus_of_nodes` and `gpus_of_nodes`
    are empty if they are not known.
    """

    address: str
    dashboard: str
    num_nodes: int
    num_cpus: int
    num_gpus: int
    grows: bool = False
    cpus_of_nodes: tuple[float, ...] = ()
    gpus_of_nodes: tuple[float, ...] = ()


def _to_log(message: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """What Ray would print of each lost worker and node, in twenty lines that cut the screen.

    The study itself says what was lost.
    """
    logger.info("\n".join(map(str, message.get("lines", ()))))


_worker: Any = ray._private.worker
_worker.print_to_stdstream = _to_log


def connect(address: str, *, study: str = "") -> Cluster:
    """Start Ray on this machine (`local`), or join the cluster here (`auto`) or at `host:port`.

    Never joins any other cluster. The code of `trainable` is sent to a cluster's nodes: they need
    the dependencies, but not this folder. Ray's list of jobs shows the name `study`.

    Raises:
        ConnectError: there is no Ray cluster at the address, or it wants another token.
    """
    if address.startswith("ray://"):
        raise ConnectError(
            "with ray:// a study ends when the connection breaks: use `ray job submit`, or "
            "--address HOST:PORT on a node of the cluster"
        )
    try:
        job = JobConfig(metadata={"job_name": study})  # its name in Ray's dashboard
        context = _start(job) if address == "local" else _join(address, job)
    except ConnectError:
        raise
    except Exception as error:  # Ray raises a bare one where it does not start in time
        if "Version mismatch" in str(error):
            raise ConnectError(_versions(address, str(error))) from error
        raise ConnectError(
            f"no Ray cluster at --address {address}: {one_line(error)}; start one with `ray start "
            f"--head`, or use --address local"
        ) from error
    known = Cluster(
        address=address,
        dashboard=context.dashboard_url or "",
        num_nodes=0,
        num_cpus=0,
        num_gpus=0,
        grows=address != "local" and _has_autoscaler(),
    )
    return look_again(known)


def _versions(address: str, mismatch: str) -> str:
    """Ray's seven lines about a cluster of other versions, as one."""
    there, here = re.findall(r"Ray: (\S+)\s+Python: (\S+)", mismatch)
    return (
        f"the cluster at --address {address} has Ray {there[0]} and Python {there[1]}, and this "
        f"command has Ray {here[0]} and Python {here[1]}: both must be the same"
    )


def look_again(cluster: Cluster) -> Cluster:
    """The cluster as it is now: nodes come and go."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(kind, 0.0) for node in nodes] for kind in ("CPU", "GPU"))
    return replace(
        cluster,
        num_nodes=len(nodes),
        num_cpus=int(sum(cpus)),
        num_gpus=int(sum(gpus)),
        cpus_of_nodes=tuple(cpus),
        gpus_of_nodes=tuple(gpus),
    )


def _has_autoscaler() -> bool:
    """Whether the cluster has kinds of nodes that it can start.

    Ray's monitor publishes the kind of each node. Without an autoscaler that is `node_<its id>`.
    """
    state: Any = ray._private.state.state
    if state.get_max_resources_from_cluster_config():  # the second version of the autoscaler
        return True
    status = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
    kinds = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in kinds.items())


def _start(job: JobConfig) -> Any:
    """Start Ray on this machine."""
    # At its first start Ray writes a file with its token, which only this user may read.
    old = os.umask(0o077)
    try:
        with _separate_servers(), _interruptible():
            return ray.init(
                "local",
                include_dashboard=True,
                job_config=job,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    finally:
        os.umask(old)


def _join(address: str, job: JobConfig) -> Any:
    """Join a cluster, and send it the code of `trainable`."""
    _check_answers(address)
    code = Path(trainable.__file__).parent
    runtime_env = {
        "py_modules": [str(code)],
        "excludes": ["__pycache__"],
        "env_vars": {
            name: os.environ[name]
            for name in TRAVELLING
            if name in os.environ and not credentials.in_uri(os.environ[name])
        },
    }
    with _interruptible():
        return ray.init(
            address,
            runtime_env=runtime_env,
            job_config=job,
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
    """Raise ConnectionError if no head of Ray's listens: Ray itself would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("the address must be local, auto or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S):
        pass
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # Ray itself has the certificates
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError("what listens there is not the head of a Ray cluster") from error
        _check_token(channel, address)


def _check_token(channel: "grpc.Channel", address: str) -> None:
    """Raise ConnectError where the head wants another token: Ray would only say it failed."""
    token = _token()
    ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
    try:
        ask(b"", metadata=list(token.items()), timeout=ANSWER_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            why = "the token here is not its own" if token else "none was given"
            raise ConnectError(
                f"the cluster at --address {address} wants a token, and {why}: set "
                f"RAY_AUTH_MODE=token and copy ~/.ray/auth_token from its head"
            ) from error


def _token() -> dict[str, str]:
    """The token that Ray sends from here, as a header; empty without one."""
    raylet: Any = ray._raylet
    header: dict[str, str] = raylet.AuthenticationTokenLoader.instance().get_token_for_http_header()
    return header


def disconnect() -> None:
    """Leave the cluster; stop it if it is local."""
    ray.shutdown()
