"""Workers that hang are ended; those of a driver that stood still are not."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from search.execution import watchdog
from search.execution.watchdog import HUNG_FACTOR, HUNG_LEAST_S, START_S, Stalls


class Driver:
    """A driver's clock and its checks, and the trials whose workers were ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.now_s = 1000.0
        self.ended: list[str] = []
        self.stalls = Stalls()
        self.trials: list[Any] = [
            SimpleNamespace(
                trial_id=name, status="RUNNING", temporary_state=SimpleNamespace(ray_actor=object())
            )
            for name in names
        ]
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(
            watchdog, "_kill", lambda trial, actor: self.ended.append(trial.trial_id)
        )

    def passes(
        self, seconds: float, *, reporting: tuple[str, ...] = (), every_s: float = 2
    ) -> None:
        """The driver checks each second, and some trials report."""
        for second in range(round(seconds)):
            self.now_s += 1.001
            for name in reporting:
                if second % every_s == 0:
                    self.stalls.reported(name)
            self.stalls.end_the_hung(self.trials)


def test_a_worker_that_is_silent_for_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a", "b")
    driver.passes(30, reporting=("a", "b"))
    driver.passes(HUNG_LEAST_S - 3, reporting=("a",))
    assert driver.ended == []
    driver.passes(6, reporting=("a",))
    assert driver.ended == ["b"]


def test_the_limit_follows_the_trials_own_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a")
    driver.passes(60, reporting=("a",), every_s=10)
    assert driver.stalls.limit_s("a") == pytest.approx(HUNG_FACTOR * 10, rel=0.02)
    assert driver.stalls.limit_s("new") == pytest.approx(START_S + HUNG_FACTOR * 10, rel=0.02)


@pytest.mark.parametrize("pause_s", [90.0, 3600.0])
def test_a_driver_that_stood_still_ends_no_worker(
    pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, or on a machine that was paused: what came meanwhile it has not heard yet."""
    driver = Driver(monkeypatch, "a", "b")
    driver.passes(30, reporting=("a", "b"))
    driver.now_s += pause_s
    driver.passes(HUNG_LEAST_S - 5, reporting=("a",))
    assert driver.ended == []
    driver.passes(10, reporting=("a",))
    assert driver.ended == ["b"]  # its silence before and after the pause still counts


def test_a_node_without_our_code_can_end_a_worker() -> None:
    """The function is sent whole: unpickled in a process that cannot import `search`."""
    sleeper = subprocess.Popen(["bash", "-c", "exec -a ray::sleeper sleep 60"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        sent = ray.cloudpickle.dumps(watchdog._process_ender())
        code = (
            "import pickle, sys\n"
            "end = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "assert not any(name.startswith('search') for name in sys.modules)\n"
            "[end(int(pid)) for pid in sys.argv[2:]]"
        )
        pids = [str(process.pid) for process in (sleeper, other)]
        while b"ray::" not in Path(f"/proc/{sleeper.pid}/cmdline").read_bytes():
            pass  # bash is still there
        words = [sys.executable, "-c", code, sent.hex(), *pids]
        subprocess.run(words, check=True, cwd="/")
        assert sleeper.wait(10) == -signal.SIGKILL
        assert other.poll() is None  # no worker of Ray's
    finally:
        for process in (sleeper, other):
            process.kill()
            process.wait()
