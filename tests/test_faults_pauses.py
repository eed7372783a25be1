"""Faults that pass: a paused command, storage that is away, a slow disk, a lost head."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import psutil
import pytest
from commands import ROOT, free_port
from faulty_study import Command, check, doubled, enough, go_on, in_workers

from trainable.host import storage

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PAUSE_S = 20.0  # four times what a silent worker has here


def test_a_paused_command_kills_no_worker(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    """As by Ctrl-Z: when it goes on, its workers have been silent for longer than their limit."""
    command.start()
    command.wait_for(enough)
    before = command.rows()
    command.process.send_signal(signal.SIGSTOP)
    time.sleep(PAUSE_S)
    command.process.send_signal(signal.SIGCONT)
    began, had = time.monotonic(), len(before)
    command.wait_for(lambda rows: len(rows) > had)
    recovered = time.monotonic() - began
    status, said = command.end()
    assert status == 0, said
    row = {"fault": "the command is paused (20 s; limit 5 s here)", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)
    assert set(command.rows()["attempt"]) == {1}


def test_a_slow_disk_loses_nothing(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """A second for each file that workers write."""
    command.environment = in_workers("slow_disk", tmp_path)
    command.start()
    command.wait_for(enough)
    before = command.rows()
    status, said = command.end()
    assert status == 0, said
    row = {"fault": "a slow disk (1 s a file of a worker)"}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_storage_that_is_away_for_a_while_fails_no_trial(
    faultless: pd.DataFrame, fault_matrix: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 server that stands still for 20 s: the command and its workers ask again."""
    port = free_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = Command("s3://faults/out")
    storage._opened.cache_clear()
    try:
        wait_for_port(port)
        boto3.client("s3").create_bucket(Bucket="faults")
        command.start()
        command.wait_for(enough)
        before = command.rows()
        server.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        server.send_signal(signal.SIGCONT)
        struck, had = time.monotonic(), len(before)
        command.wait_for(lambda rows: len(rows) > had)
        recovered = time.monotonic() - struck
        status, said = command.end()
        assert status == 0, said
        row = {"fault": "storage stands still for 20 s", "recovered after": recovered}
        check(command, before, faultless, matrix=fault_matrix, **row)
    finally:
        server.kill()
        server.wait()
        storage._opened.cache_clear()
        if hasattr(command, "process") and command.process.poll() is None:
            command.process.kill()
            command.process.communicate()


def test_a_cluster_that_loses_its_head_and_gets_another(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """The command ends with 75 in seconds, and the same one goes on at the next head."""
    head = Head()
    try:
        command.settings = ("--address", head.address)
        command.start()
        command.wait_for(enough)
        before = command.rows()
        head.end("gcs_server")
        struck = time.monotonic()
        status, said = command.end(90)
        detected = time.monotonic() - struck
        assert status == 75, said
        assert "the head of the cluster" in said
        assert "go on with" in said
    finally:
        head.stop()
    head = Head()
    try:
        command.settings = ("--address", head.address)
        recovered = go_on(command)
        row = {"fault": "the head of a cluster is lost", "detected after": detected}
        row["recovered after"] = recovered
        check(command, before, faultless, matrix=fault_matrix, **row)
        assert doubled(command) == 0
    finally:
        head.stop()


class Head:
    """A cluster of one node that is not the command's."""

    def __init__(self) -> None:
        self.port = free_port()
        words = ["start", "--head", "--block", "--num-cpus=2", f"--port={self.port}"]
        words += [f"--dashboard-port={free_port()}", "--dashboard-agent-listen-port=0"]
        self.temp = Path(f"/tmp/ray-head-{os.getpid()}-{self.port}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words, f"--temp-dir={self.temp}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for_port(self.port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, name: str) -> None:
        (server,) = [p for p in self._tree() if p.name().startswith(name[:15])]
        server.kill()

    def stop(self) -> None:
        tree = self._tree() if self.process.poll() is None else []
        for process in [*tree, self.process]:
            process.kill()
        self.process.wait(30)


def wait_for_port(port: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
