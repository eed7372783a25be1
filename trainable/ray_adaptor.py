"""One trial as Ray sees it: a function that reports rows, others that measure a few updates.

The only file here with Ray.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put

from trainable.config import TrialConfig
from trainable.host import pulse
from trainable.host.messages import one_line
from trainable.host.storage import Folder, StorageError, TakenOverError
from trainable.record import EpochResult, TrialResult, finite_score

PARENT_CHECK_S = 2.0
BEAT_S = 2.0
BEATS = "trial_workers"  # where in Ray's key-value store a worker says what it does
NODE_LABEL = "ray.io/node-id"  # Ray gives each node one
KEPT_DATASETS = 2  # open at once in a worker that is reused


def train_trial(planned: dict[str, Any]) -> None:
    """Train `planned["task"]`: JSON of a trial or of a pack, as the runner sends it.

    Every evaluation is reported as `{"epoch_row": ...}` and the end as `{"trial_row": ...}`, with
    the trial's `key`. An error of the trial's own (a wrong config, a bug) is a row too, with status
    `failed`: it would only fail again, so Ray is not asked to retry it. An error of this host's
    (its GPU, its disk, its copy of the data) is reported as `{"host_error": ...}` and ends the
    process: the trial goes on in another one, on another host if this one fails again.
    """
    task = json.loads(planned["task"])
    num_gpus = _num_gpus()
    origin: dict[str, Any] = {
        "num_gpus": num_gpus,
        "gpu_shared": 0 < num_gpus < 1,
        "host": socket.gethostname(),
        "started_at": datetime.now(UTC),
    }
    pulse.begin(planned["key"])
    _end_with_parent()
    _beat()
    keys = [trial["key"] for trial in task["trials"]]
    ended: set[str] = set()

    def end(key: str, row: dict[str, Any]) -> None:
        ended.add(key)
        _report(task["metric"], key, trial_row=row | origin | {"ended_at": datetime.now(UTC)})

    try:
        with closing(_outcomes(task)) as outcomes:
            for index, outcome in outcomes:
                key = keys[index]
                if isinstance(outcome, EpochResult):
                    _report(task["metric"], key, epoch_row=asdict(outcome))
                elif isinstance(outcome, TrialResult):
                    end(key, asdict(outcome))
                else:
                    end(key, _row_of(outcome, task["metric"], key))
    except Exception as error:  # before any could begin
        for key in keys:
            if key not in ended:
                end(key, _row_of(error, task["metric"], key))


def _row_of(error: Exception, metric: str, key: str) -> dict[str, Any]:
    """What becomes of a trial's error: its row. An error of the host's ends the process."""
    if isinstance(error, TakenOverError):
        os._exit(1)  # the trial goes on elsewhere, and what this process knows is old
    if isinstance(error, StorageError):
        return {"status": "interrupted", "reason": error.strerror}
    text = "".join(traceback.format_exception(error))
    kind = type(error).__name__
    if _is_the_hosts(error):
        sys.stderr.write(text)  # for the worker's log
        reason = one_line(error) if isinstance(error, HostError) else f"{kind}: {error}"
        about = {"kind": kind, "reason": reason, "node": _node(), "traceback": text}
        _report(metric, key, host_error=about | {"host": socket.gethostname()})
        os._exit(1)
    return {"status": "failed", "reason": f"{kind}: {error}", "traceback": text}


class HostError(RuntimeError):
    """This host cannot train the trial, whatever its config: another one may."""


def _is_the_hosts(error: Exception) -> bool:
    """Whether the trial may succeed in another process or on another host.

    After an error of CUDA's such as an illegal memory access, CUDA cannot be started again in the
    process. An OSError is the system's, but for a file that is where a folder should be: it would
    be there for all. A missing package is the host's.
    """
    import torch

    everywhere = FileExistsError | NotADirectoryError | IsADirectoryError
    if isinstance(error, torch.OutOfMemoryError | everywhere):
        return False
    return isinstance(error, HostError | OSError | ImportError | torch.AcceleratorError)


def probe_trial(planned: dict[str, Any]) -> Any:
    """Time a few updates and an evaluation of `planned["config"]` here; a `probe.Measured`."""
    from trainable.probe import probe

    config = TrialConfig(**planned["config"])
    data = _open_data(config, planned["data_folder"])
    _claim_device(planned["num_cpus"])
    return probe(config, data, num_threads=planned["num_cpus"])


def measure_trial(planned: dict[str, Any]) -> Any:
    """Measure the memory of `planned["config"]` on the GPU of this process: `probe.MemoryUse`."""
    from trainable.probe import measure_memory

    config = TrialConfig(**planned["config"])
    data = _open_data(config, planned["data_folder"])
    _claim_device(planned["num_cpus"])
    return measure_memory(config, data, num_threads=planned["num_cpus"])


def bundle_of(
    planned: dict[str, Any], left_out: Collection[str] = ()
) -> tune.PlacementGroupFactory:
    """What Ray sets aside for a trial, on none of the nodes `left_out`, which are ids.

    A worker is used again only for the same. It is here since workers must be able to import it.
    """
    nodes = (*planned.get("left_out", ()), *left_out)
    return _bundle(tuple(planned["resources"].items()), tuple(sorted(set(nodes))))


@cache
def _bundle(
    resources: tuple[tuple[str, float], ...], left_out: tuple[str, ...]
) -> tune.PlacementGroupFactory:
    if not left_out:
        return tune.PlacementGroupFactory([dict(resources)])
    elsewhere = {NODE_LABEL: f"!in({','.join(left_out)})"}
    return tune.PlacementGroupFactory([dict(resources)], bundle_label_selector=[elsewhere])


def _node() -> str:
    """The id of this worker's node."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _num_gpus() -> float:
    """The GPU, or the share of one, that Ray gave this worker."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))


def _claim_device(num_cpus: int) -> None:
    """Limit this process to its cores and its share of a GPU, once the GPU's memory is free.

    Of several GPUs it takes the first one.

    Raises:
        HostError: the memory is not free after a while.
    """
    from trainable.host.device import claim_device

    try:
        claim_device(num_cpus, min(_num_gpus(), 1.0))
    except RuntimeError as error:
        raise HostError(str(error)) from error


def _num_ranks() -> int:
    """How many processes train a trial: one for each of its GPUs."""
    return max(1, int(_num_gpus()))


@cache
def _followers(size: int) -> Any:
    """The processes of this worker's other ranks, for all of its trials.

    One that is lost while a trial is under way takes this process with it: Ray then counts one lost
    worker, and starts the trial again from its checkpoint.
    """
    from trainable.host.followers import Followers

    def end() -> None:
        sys.stderr.write("another rank of this trial has ended: so does this one\n")
        os._exit(1)

    return Followers(size, on_loss=end)


@contextmanager
def _ranks(config: TrialConfig, trial: dict[str, Any]) -> Iterator[Any]:
    """The ranks of the trial, of which this process is the first."""
    from trainable.finetune import follow
    from trainable.host.ranks import ALONE, RankLostError

    size = _num_ranks()
    if size == 1:
        yield ALONE
        return
    num_threads = max(1, trial["num_cpus"] // size)
    try:
        with _followers(size).training(follow, config, trial["data_folder"], num_threads) as ranks:
            yield ranks
    except RankLostError:
        traceback.print_exc()  # for the worker's log
        os._exit(1)


@cache
def _beat() -> None:
    """Say every few seconds what this process does, so that the driver can tell if it hangs."""
    context = ray.get_runtime_context()
    key = f"{context.get_job_id()}/{context.get_actor_id()}"
    place = {"node": context.get_node_id(), "pid": os.getpid()}

    def beat() -> None:
        for number in count():
            with suppress(Exception):  # the head of the cluster is away: nobody asks then
                said = place | vars(pulse.now) | {"beat": number}
                _internal_kv_put(key, json.dumps(said), namespace=BEATS)
            time.sleep(BEAT_S)

    threading.Thread(target=beat, name="beat", daemon=True).start()


@cache
def _end_with_parent() -> None:
    """End this process when its node's raylet is gone.

    Ray leaves it: it would hold its GPU's memory beside the trial's next attempt.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _outcomes(task: dict[str, Any]) -> Generator[tuple[int, Any]]:
    """What the trials of a task report, each with its index."""
    # Imported here, in the worker: the driver plans and prints without torch's training stack.
    from trainable.host.device import pick_device
    from trainable.pack import Member, Terms, train_pack

    if (size := _num_ranks()) > 1:
        _followers(size).start()  # they import torch meanwhile
    configs = [TrialConfig(**trial["config"]) for trial in task["trials"]]
    pulse.enter("opening data")
    try:
        data = _open_data(configs[0], task["data_folder"])
    except ValueError as error:  # the driver could open it
        raise HostError(f"{error} (on {socket.gethostname()})") from error
    if data.fingerprint != task["data_fingerprint"]:
        raise HostError(
            f"the data on {socket.gethostname()} ({data.fingerprint[:12]}) is not the driver's "
            f"({task['data_fingerprint'][:12]}): give every node the same files"
        )
    _claim_device(max(1, task["num_cpus"] // size))
    members = [
        Member(
            config=config,
            checkpoint_folder=Folder(trial["checkpoint_folder"]),
            start_folder=Folder(trial["start_folder"]) if trial["start_folder"] else None,
        )
        for config, trial in zip(configs, task["trials"], strict=True)
    ]
    keys = [trial["key"] for trial in task["trials"]]
    with _ranks(configs[0], task) as ranks:
        terms = Terms(
            data=data,
            device=pick_device(),
            keep_weights=task["keep_weights"],
            checkpoint_every_s=task["checkpoint_every_s"],
            ranks=ranks,
        )
        is_stopped = partial(_is_stopped, keys) if len(keys) > 1 else lambda _: False
        with closing(train_pack(members, terms, is_stopped=is_stopped)) as outcomes:
            yield from outcomes


def stop_member(key: str) -> None:
    """Let a trial of a pack leave it, on the driver: its worker asks after each evaluation."""
    _internal_kv_put(_stop_mark(key), "1", namespace=BEATS)


def _is_stopped(keys: list[str], index: int) -> bool:
    """Whether a scheduler stopped the trial, on its worker; not if the cluster's head is away."""
    with suppress(Exception):
        return bool(_internal_kv_exists(_stop_mark(keys[index]), namespace=BEATS))
    return False


def _stop_mark(key: str) -> str:
    return f"{ray.get_runtime_context().get_job_id()}/stopped/{key}"


def _open_data(config: TrialConfig, folder: str | None) -> Any:
    return _opened(config.dataset, folder, config.split_by, config.task)


@lru_cache(KEPT_DATASETS)
def _opened(name: str, folder: str | None, split_by: str | None, task: str) -> Any:
    from trainable.data.cache import open_data

    return open_data(name, Path(folder) if folder else None, split_by=split_by, task=task)


def _report(metric: str, key: str, **row: dict[str, Any]) -> None:
    """A row, and beside it what searchers and schedulers compare: always finite."""
    values = next(iter(row.values()))
    seen = values.get("examples_seen", 0)
    pulse.enter("reporting")  # until the driver has taken the row
    tune.report({**row, "key": key, "score": finite_score(metric, values), "examples_seen": seen})
