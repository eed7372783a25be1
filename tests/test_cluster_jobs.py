"""`ray job submit` to a head that wants a token: progress in the log, stop, and go on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import ROOT, free_port

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SEEDS = 6  # of two settings: half a minute, as the commands of Ray that stop it take seconds each


@dataclass
class Head:
    """A cluster of one node with a dashboard, and a folder with the project's code alone."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    code: Path

    def ray(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*RAY, "job", *words],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.code,
            timeout=300,
        )

    def submit(self, out: Path, submission: str, *settings: str) -> str:
        command = [sys.executable, "-m", "search.run", "tests/spaces/faulty.py"]
        command += ["--address", "auto", "--out", str(out), *settings]
        done = self.ray(
            *("submit", "--no-wait", "--submission-id", submission, "--working-dir", "."),
            *("--", *command),
        )
        return done.stdout + done.stderr

    def log(self, submission: str) -> str:
        return self.ray("logs", submission).stdout

    def status(self, submission: str) -> str:
        said = self.ray("status", submission)
        return said.stdout + said.stderr


@pytest.fixture
def head(tmp_path: Path, drawn_patches: None) -> Iterator[Head]:
    ports = [free_port() for _ in range(2)]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-" + "0" * 20,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "OMP_NUM_THREADS": "1",
    }
    code = tmp_path / "code"
    code.mkdir()
    for name in ("search", "trainable", "spaces", "cluster", "tests/spaces"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, code / name, ignore=ignore)
    words = ["start", "--head", "--block", "--num-cpus=2", f"--port={ports[0]}"]
    words += [f"--dashboard-port={ports[1]}", "--dashboard-agent-listen-port=0"]
    words += [f"--temp-dir=/tmp/ray-jobs-{os.getpid()}", "--disable-usage-stats"]
    process = subprocess.Popen(
        [*RAY, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    head = Head(process, environment, code)
    try:
        wait_for(lambda: head.ray("list").returncode == 0)
        yield head
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(f"/tmp/ray-jobs-{os.getpid()}", ignore_errors=True)


def wait_for(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


def epochs(out: Path) -> pd.DataFrame:
    parts = list((out / "faulty").glob("epochs/*.parquet"))
    return pd.concat([pd.read_parquet(part) for part in parts]) if parts else pd.DataFrame()


def test_a_submission_shows_progress_is_stopped_with_75_and_the_next_goes_on(
    head: Head, tmp_path: Path, fault_matrix: list[Any]
) -> None:
    out = tmp_path / "out"
    wrong = head.environment | {"RAY_AUTH_TOKEN": "another" * 8}
    refused = subprocess.run(
        [*RAY, "job", "list"], env=wrong, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode != 0

    said = head.submit(out, "faulty-1", "--set", f"seeds={SEEDS}")
    assert "submitted successfully" in said, said
    wait_for(lambda: f"[1/{2 * SEEDS}]" in head.log("faulty-1"))
    assert f"[{2 * SEEDS}/{2 * SEEDS}]" not in head.log(
        "faulty-1"
    )  # it is there while others train
    assert "already exists" in head.submit(out, "faulty-1", "--set", f"seeds={SEEDS}")

    assert head.ray("stop", "faulty-1").returncode == 0
    assert "was stopped" in head.status("faulty-1")
    log = head.log("faulty-1")
    assert "interrupted:" in log, log
    assert "go on with" in log
    before = epochs(out)
    assert not (out / "faulty" / "lock.json").exists()  # so it ended by itself

    head.submit(out, "faulty-2", "--set", f"seeds={SEEDS}")
    wait_for(lambda: "succeeded" in head.status("faulty-2"))
    rows = epochs(out)
    assert len(rows) == 2 * SEEDS * 20
    assert not rows.duplicated(["trial_key", "epoch"]).any()
    seen = before.set_index(["trial_key", "epoch"])["epoch_wall_s"]
    after = rows.set_index(["trial_key", "epoch"])["epoch_wall_s"]
    assert (after[seen.index] == seen).all()  # nothing was trained again
    row = {"fault": "ray job stop", "epochs done again": 0, "rows lost": 0, "doubled": 0}
    fault_matrix.append(row)
