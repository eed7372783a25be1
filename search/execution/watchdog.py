"""What Ray 2.60 does not survive or notice by itself: host memory, hung workers, a dead head."""

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.experimental.internal_kv import internal_kv_get_gcs_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainable.ray_adaptor import BEATS

HOST_MEMORY = "oom_host: the node ran out of memory and Ray ended the trial's worker"
# How long a worker may be in a phase without the count of its work growing.
PHASE_LIMITS_S = {
    "starting": 600.0,  # its process imports torch
    "opening data": 7200.0,  # the first on a node decodes it
    "building": 3600.0,  # pretrained weights may have to be fetched
    "training": 600.0,
    "evaluating": 600.0,
    "saving": 600.0,
    "reporting": math.inf,  # it waits for this process
}
SILENT_S = 60.0  # without a beat: the process is stopped, or its interpreter is blocked
SILENT_AT_START_S = 600.0  # libraries that are loaded, and files that are decoded, may block it
STEP_S = 1.0
PAUSE_S = 5.0  # between two checks: the driver stood still, and heard nothing meanwhile
HEAD_GONE_S = 10.0
GCS_TIMEOUT_S = 2.0


@contextmanager
def host_memory_survived() -> Iterator[None]:
    """Let a worker that Ray's memory monitor ended count as lost, for Tune to start again.

    Ray 2.60 does not take its own OutOfMemoryError for the loss of an actor, and ends the whole
    study with a RuntimeError.
    """
    manager: Any = RayActorManager
    original = manager._actor_task_failed

    def as_lost(self: Any, *, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=HOST_MEMORY)
        original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    manager._actor_task_failed = as_lost
    try:
        yield
    finally:
        manager._actor_task_failed = original


@dataclass
class _Heard:
    """What was last heard of a trial's worker, and by this process's clock when it changed."""

    beat: Mapping[str, Any]
    alive_at: float
    moved_at: float
    has_reported: bool = False


class Stalls:
    """Ends workers that hang, so that Ray starts their trials again elsewhere.

    A worker says every few seconds in which phase it is and how much it has done. It hangs if it
    says nothing for long, or if nothing moves for longer than its phase may take. Time in which
    this process stood still (Ctrl-Z, a paused machine, a storage that did not answer), or in which
    the cluster's head did not answer, counts for none.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.heard: dict[str, _Heard] = {}
        self.checked = 0.0

    def began_again(self, trial_id: str) -> None:
        """A trial waits for a worker, or was lost and starts anew."""
        self.heard.pop(trial_id, None)

    def reported(self, trial_id: str) -> None:
        """A trial's worker has evaluated: it is past its start, whatever its last beat says."""
        now = time.monotonic()
        self.heard.setdefault(trial_id, _Heard({}, now, now)).has_reported = True

    def node_of(self, trial_id: str) -> str:
        """The id of the node where the trial's worker is; empty if it has not said so yet."""
        heard = self.heard.get(trial_id)
        return heard.beat.get("node", "") if heard else ""

    def end_the_hung(self, trials: Sequence[Any]) -> dict[str, str]:
        """Kill the workers that hang; returns the ids of their trials, with what was wrong."""
        now = time.monotonic()
        passed_s = now - self.checked
        if passed_s < STEP_S:
            return {}
        self.checked = now
        running = {}
        for trial in trials:
            if trial.status == "RUNNING" and trial.temporary_state.ray_actor is not None:
                running[trial.trial_id] = trial
            else:
                self.began_again(trial.trial_id)
        beats = beats_of(running.values())
        if beats is None or passed_s > PAUSE_S:
            for heard in self.heard.values():
                heard.alive_at += passed_s
                heard.moved_at += passed_s
        hung = {}
        for trial_id, trial in running.items():
            heard = self._hear(trial, (beats or {}).get(trial_id, {}), now)
            if why := _hangs(heard, now):
                heard.alive_at = heard.moved_at = now
                hung[trial_id] = why
                _kill(trial, heard.beat)
        return hung

    def _hear(self, trial: Any, beat: Mapping[str, Any], now: float) -> _Heard:
        heard = self.heard.setdefault(trial.trial_id, _Heard({}, now, now))
        if beat.get("trial") == trial.config["key"]:  # not of the one that it trained before
            if beat["beat"] != heard.beat.get("beat"):
                heard.alive_at = now
            if (beat["phase"], beat["ticks"]) != (heard.beat.get("phase"), heard.beat.get("ticks")):
                heard.moved_at = now
            heard.beat = beat
        return heard


def _hangs(heard: _Heard, now: float) -> str:
    """Why a worker counts as hung; empty if it does not."""
    phase = heard.beat.get("phase", "starting")
    at_start = phase in ("starting", "opening data", "building") and not heard.has_reported
    silent_s, still_s = now - heard.alive_at, now - heard.moved_at
    if silent_s > (SILENT_AT_START_S if at_start else SILENT_S):
        return f"it gave no sign of life for {silent_s:.0f} s while {phase}"
    if still_s > PHASE_LIMITS_S[phase]:
        return f"nothing moved for {still_s:.0f} s while {phase}"
    return ""


def beats_of(trials: Iterable[Any]) -> dict[str, dict[str, Any]] | None:
    """What the trials' workers last said, by trial id; None if the cluster's head is away."""
    job = ray.get_runtime_context().get_job_id()
    keys = {
        f"{job}/{trial.temporary_state.ray_actor._actor_id.hex()}".encode(): trial.trial_id
        for trial in trials
    }
    try:
        client = internal_kv_get_gcs_client()
        said = client.internal_kv_multi_get(list(keys), BEATS.encode(), GCS_TIMEOUT_S)
    except Exception:  # whatever gRPC makes of it
        return None
    return {keys[key]: json.loads(beat) for key, beat in said.items()}


def forget_beats() -> None:
    """Delete what workers said: a cluster may stay for thousands of studies."""
    if not ray.is_initialized():  # its key-value client outlives it, and waits for a minute
        return
    prefix = f"{ray.get_runtime_context().get_job_id()}/"
    with suppress(Exception):  # whatever gRPC makes of a head that has gone
        client = internal_kv_get_gcs_client()
        client.internal_kv_del(prefix.encode(), True, BEATS.encode(), GCS_TIMEOUT_S)


def _kill(trial: Any, beat: Mapping[str, Any]) -> None:
    """End a trial's process by signal, from its own node: a stopped one hears nothing else."""
    if not beat:
        ray.kill(trial.temporary_state.ray_actor)
        return
    strategy = NodeAffinitySchedulingStrategy(beat["node"], soft=False)
    end = ray.remote(num_cpus=0)(_process_ender()).options(scheduling_strategy=strategy)
    end.remote(int(beat["pid"]))


def _process_ender() -> Callable[[int], None]:
    """A function that Ray sends as a whole: nodes that joined later may lack this module."""

    def end_process(pid: int) -> None:
        """Kill, where the process is still one of Ray's workers."""
        import os
        import signal
        from pathlib import Path

        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)

    return end_process


@contextmanager
def head_watched(exit_status: int, resume: str) -> Iterator[None]:
    """End the process with a status and a sentence once the cluster's head is gone.

    Ray waits a minute and then ends the driver from below Python. The tables hold every evaluation
    that came, so there is nothing to save.
    """
    stop = threading.Event()
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")

    def watch() -> None:
        last = time.monotonic()
        while not stop.wait(STEP_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                last = time.monotonic()
            except OSError:
                if time.monotonic() - last > HEAD_GONE_S and not stop.is_set():
                    sys.stdout.flush()
                    sys.stderr.write(f"\nthe head of the cluster ({address}) is gone; {resume}\n")
                    sys.stderr.flush()
                    os._exit(exit_status)

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
