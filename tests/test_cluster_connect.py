import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from commands import ROOT, SMALL, Run, free_port

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


def test_a_script_that_imported_ray_before_starts_its_workers_without_uv() -> None:
    # Under `uv run` Ray would start each worker through uv, in a copy of the folder: for ever.
    code = (
        "from ray import tune; import cluster.connect; from ray._private import ray_constants; "
        "print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
