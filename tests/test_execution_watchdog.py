"""Workers that hang are ended; those of a driver that stood still are not."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from search.execution import watchdog
from search.execution.watchdog import PHASE_LIMITS_S, SILENT_S, Stalls, forget_beats
from trainable.host.pulse import PHASES


class Driver:
    """A driver's clock and its checks, trials with what their workers say, and who was ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.now_s = 1000.0
        self.ended: dict[str, str] = {}
        self.stalls = Stalls()
        self.beats: dict[str, Any] | None = {}
        self.trials: list[Any] = [
            SimpleNamespace(
                trial_id=name,
                config={"key": name},
                status="RUNNING",
                temporary_state=SimpleNamespace(ray_actor=object()),
            )
            for name in names
        ]
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(watchdog, "beats_of", lambda trials: self.beats)
        monkeypatch.setattr(watchdog, "_kill", lambda trial, beat: None)
        self.check()

    def check(self) -> None:
        self.ended.update(self.stalls.end_the_hung(self.trials))

    def passes(self, seconds: float, **doing: tuple[str, bool]) -> None:
        """Seconds pass in which some workers beat: their phase, and whether their work moves."""
        for _ in range(round(seconds)):
            self.now_s += 1.001
            assert self.beats is not None
            for name, (phase, moves) in doing.items():
                last = self.beats.get(name, {"beat": 0, "ticks": 0})
                self.beats[name] = {
                    "trial": name,
                    "node": f"node of {name}",
                    "phase": phase,
                    "beat": last["beat"] + 1,
                    "ticks": last["ticks"] + moves,
                }
            self.check()


TRAINS = ("training", True)


def test_a_worker_that_gives_no_sign_of_life_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a", "b")
    driver.passes(30, a=TRAINS, b=TRAINS)
    driver.passes(SILENT_S - 2, a=TRAINS)
    assert driver.ended == {}
    driver.passes(5, a=TRAINS)
    assert driver.ended == {"b": "it gave no sign of life for 60 s while training"}
    assert driver.stalls.node_of("b") == "node of b"


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "reporting"])
def test_each_phase_has_a_limit_for_work_that_does_not_move(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(monkeypatch, "a")
    limit_s = PHASE_LIMITS_S[phase]
    driver.passes(limit_s + 10, a=(phase, True))
    driver.passes(limit_s - 10, a=(phase, False))
    assert driver.ended == {}
    driver.passes(15, a=(phase, False))
    assert driver.ended["a"].endswith(f" s while {phase}")


def test_every_phase_of_a_worker_has_a_limit() -> None:
    assert list(PHASE_LIMITS_S) == list(PHASES)


def test_a_slow_start_beside_fast_trials_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that is decoded, weights that are fetched, a first epoch of a large network."""
    driver = Driver(monkeypatch, "fast", "slow")
    driver.passes(200, fast=TRAINS, slow=("opening data", False))
    driver.passes(200, fast=TRAINS, slow=("building", False))
    driver.passes(3600, fast=TRAINS, slow=TRAINS)  # and no evaluation of it yet
    assert driver.ended == {}


def test_a_worker_that_waits_for_the_driver_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a")
    driver.passes(9000, a=("reporting", False))
    assert driver.ended == {}


def test_a_worker_that_never_says_anything_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a")
    driver.passes(PHASE_LIMITS_S["starting"] - 10)
    assert driver.ended == {}
    driver.passes(15)
    assert "while starting" in driver.ended["a"]


@pytest.mark.parametrize("beats", [{"a": ("building", False)}, {}])
def test_a_worker_that_reported_has_started(
    beats: dict[str, tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang between two beats: the last one is then of its start, or there was none."""
    driver = Driver(monkeypatch, "a")
    driver.passes(1, **beats)
    driver.stalls.reported("a")
    driver.passes(SILENT_S - 5)
    assert driver.ended == {}
    driver.passes(10)
    assert "no sign of life for 60 s" in driver.ended["a"]


def test_what_a_reused_worker_said_of_its_last_trial_counts_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(monkeypatch, "a")
    driver.passes(10, a=TRAINS)
    (trial,) = driver.trials
    driver.stalls.began_again("a")
    trial.config["key"] = "the next"
    driver.passes(SILENT_S + 10, a=TRAINS)
    assert driver.ended == {}
    assert driver.stalls.node_of("a") == ""


@pytest.mark.parametrize("pause_s", [90.0, 3600.0])
def test_a_driver_that_stood_still_ends_no_worker(
    pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, or on a machine that was paused: what came meanwhile it has not heard yet."""
    driver = Driver(monkeypatch, "a", "b")
    driver.passes(30, a=TRAINS, b=TRAINS)
    driver.now_s += pause_s
    driver.check()
    driver.passes(SILENT_S - 5, a=TRAINS)
    assert driver.ended == {}
    driver.passes(10, a=TRAINS)
    assert list(driver.ended) == ["b"]  # its silence before and after the pause still counts


def test_nobody_is_judged_while_the_head_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "a")
    driver.passes(30, a=TRAINS)
    driver.beats = None
    for _ in range(1000):
        driver.now_s += 1.001
        driver.check()
    assert driver.ended == {}


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


@pytest.mark.ray
def test_the_end_of_a_study_does_not_wait_for_a_head_that_is_away() -> None:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        (head,) = (
            child
            for child in psutil.Process().children(recursive=True)
            if child.name() == "gcs_server"
        )
        head.suspend()
        began = time.monotonic()
        forget_beats()
        head.resume()
    finally:
        ray.shutdown()
    forget_beats()
    assert time.monotonic() - began < 20
