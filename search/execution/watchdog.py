"""What Ray 2.60 does not survive or notice by itself: host memory, hung workers, a dead head."""

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

HOST_MEMORY = "oom_host: the node ran out of memory and Ray ended the trial's worker"
# A worker that reports nothing for so many times what its evaluations take is hung.
HUNG_FACTOR, HUNG_LEAST_S = 20.0, 60.0
START_S = 120.0  # more until a trial's first report: its process imports torch and loads the data
STEP_S = 1.0
PAUSE_S = 5.0  # between two checks: the driver stood still, and heard nothing meanwhile
HEAD_GONE_S = 10.0


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


class Stalls:
    """Ends workers that report nothing for far longer than evaluations take, so that Ray moves on.

    A trial's own evaluations set its limit, others' where it has none yet. While nothing at all is
    known, there is no limit. Time in which the driver itself stood still (Ctrl-Z, a paused machine,
    a storage that did not answer) counts for none.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.heard: dict[str, float] = {}
        self.took: dict[str, list[float]] = {}
        self.under_way: set[str] = set()
        self.checked = 0.0

    def reported(self, trial_id: str) -> None:
        """A trial's evaluation came."""
        now = time.monotonic()
        if trial_id in self.under_way:
            self.took.setdefault(trial_id, []).append(now - self.heard[trial_id])
        self.under_way.add(trial_id)
        self.heard[trial_id] = now

    def began_again(self, trial_id: str) -> None:
        """A trial waits for a worker, or was lost and starts anew."""
        self.heard.pop(trial_id, None)
        self.under_way.discard(trial_id)

    def limit_s(self, trial_id: str) -> float:
        """How long the trial may be silent."""
        own = self.took.get(trial_id)
        known = own or [max(took) for took in self.took.values()]
        if not known:
            return float("inf")
        starting = 0.0 if trial_id in self.under_way else START_S
        return starting + max(HUNG_LEAST_S, HUNG_FACTOR * statistics.median(known))

    def end_the_hung(self, trials: list[Any]) -> list[str]:
        """Kill the workers of trials that are silent for too long; returns those trials' ids."""
        now = time.monotonic()
        if now - self.checked < STEP_S:
            return []
        if now - self.checked > PAUSE_S:
            self.heard = {key: heard + now - self.checked for key, heard in self.heard.items()}
        self.checked = now
        hung = []
        for trial in trials:
            if trial.status != "RUNNING":
                self.began_again(trial.trial_id)
                continue
            since = self.heard.setdefault(trial.trial_id, now)
            actor = trial.temporary_state.ray_actor
            if actor is not None and now - since > self.limit_s(trial.trial_id):
                self.heard[trial.trial_id] = now
                hung.append(trial.trial_id)
                _kill(trial, actor)
        return hung


def _kill(trial: Any, actor: Any) -> None:
    """End a trial's process by signal, from its own node: a stopped one hears nothing else."""
    location = trial.temporary_state.location
    node = _node_of(location.hostname)
    if location.pid and node:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        end = ray.remote(num_cpus=0)(_process_ender()).options(scheduling_strategy=strategy)
        end.remote(int(location.pid))
    else:
        ray.kill(actor)


def _node_of(ip: str | None) -> str | None:
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == ip]
    return nodes[0] if nodes else None


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
