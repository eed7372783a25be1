import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from commands import ROOT, SMALL, Run, SharedCluster, free_port

from cluster.connect import ConnectError, connect


def test_a_ray_client_address_is_refused() -> None:
    with pytest.raises(ConnectError, match="with ray:// a study ends when the connection breaks"):
        connect("ray://127.0.0.1:10001")


def test_only_one_file_starts_ray() -> None:
    done = subprocess.run(
        ["git", "grep", "-lE", r"ray\.init\(", "--", "*.py", ":!tests", ":!benchmarks"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["cluster/connect.py"]


@pytest.mark.parametrize("address", ["local", "auto"])
def test_ctrl_c_is_not_lost_where_ray_catches_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[BaseException] = []

    def init(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            caught.append(error)

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        connect(address)
    assert len(caught) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_than_the_main_one_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook's does; signals are none of its business."""

    def init(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", init)
    errors: list[BaseException] = []

    def connecting() -> None:
        try:
            connect("local")
        except ConnectError as error:
            errors.append(error)

    thread = threading.Thread(target=connecting)
    thread.start()
    thread.join()
    assert "nobody there" in str(errors[0])


def test_no_cluster_at_the_address_is_said_in_one_line(tmp_path: Path, run_here: Run) -> None:
    done = run_here(SMALL, tmp_path, "--address", f"127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert "no Ray cluster at --address 127.0.0.1:" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_listens_and_is_no_ray_is_told_within_15_s(tmp_path: Path, run_here: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        done = run_here(SMALL, tmp_path, "--address", address)
        took_s = time.monotonic() - began
    assert done.returncode == 2
    assert f"no Ray cluster at --address {address}: what listens there is not the" in done.stderr
    assert done.stderr.count("\n") == 1
    assert took_s < 60  # 15 s on a machine that does nothing else, 6 of them here


@pytest.mark.ray
def test_a_cluster_of_other_versions_is_told_in_one_line(
    shared_cluster: SharedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("2.51.0", "3.10.2"))
    with pytest.raises(ConnectError) as refused:
        connect(shared_cluster.address)
    python = ".".join(map(str, sys.version_info[:3]))
    assert str(refused.value) == (
        f"the cluster at --address {shared_cluster.address} has Ray {ray.__version__} and Python "
        f"{python}, and this command has Ray 2.51.0 and Python 3.10.2: both must be the same"
    )
    assert not ray.is_initialized()


@pytest.mark.parametrize(("given", "why"), [("", "none was given"), ("mine", "the token here is")])
def test_a_cluster_that_wants_another_token_says_so(
    given: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(grpc.GenericRpcHandler):
        """A head that wants a token, as Ray's answers."""

        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            tokens.append(dict(details.invocation_metadata).get("authorization"))

            def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    header = {"authorization": f"Bearer {given}"} if given else {}
    monkeypatch.setattr("cluster.connect._token", lambda: header)
    tokens: list[Any] = []
    head = grpc.server(ThreadPoolExecutor(1), handlers=[Refusing()])
    port = head.add_insecure_port("127.0.0.1:0")
    head.start()
    try:
        with pytest.raises(ConnectError, match=f"wants a token, and {why}.*: set RAY_AUTH_MODE="):
            connect(f"127.0.0.1:{port}")
    finally:
        head.stop(None)
    assert tokens == ["Bearer mine" if given else None]


def test_workers_get_what_they_need_of_the_environment_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def init(address: str, **settings: Any) -> None:
        asked.update(settings)
        raise ConnectionError("that is all")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("DATA_CACHE_DIR", "/fast")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@minio:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with pytest.raises(ConnectError):
        connect("auto")
    there = asked["runtime_env"]["env_vars"]
    assert there["DATA_CACHE_DIR"] == "/fast"
    assert there["AWS_ENDPOINT_URL_S3"] == "http://minio:9000"
    assert "password" not in str(asked)
    assert "hidden" not in str(asked)


def test_a_script_that_imported_ray_before_starts_its_workers_without_uv() -> None:
    # Under `uv run` Ray would start each worker through uv, in a copy of the folder: for ever.
    code = (
        "from ray import tune; import cluster.connect; from ray._private import ray_constants; "
        "print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
