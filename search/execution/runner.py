"""Runs trials on Ray Tune: the only file that builds a Tuner."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

# No CSV, JSON and TensorBoard beside our tables, and no snapshots of a state that is not used.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "100000")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are in the tables and on screen
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0
# Ray asks an unknown searcher for one trial at a time; so many wait where a cluster may grow.
MOST_PENDING = os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "32")

from ray import tune

from cluster.connect import Cluster, look_again
from search.execution.forecast_stopping import ForecastStopping
from search.execution.hosts import NoHostError
from search.execution.in_order import InOrder
from search.execution.nodes import LOOK_S
from search.execution.progress import Progress
from search.execution.queue import Queue
from search.execution.recorder import MOST_LOST_WORKERS, Recorder, Setting
from search.execution.resources import places, resources_of
from search.execution.schedulers import EarlyStopping, scheduler_of
from search.execution.watchdog import forget_beats, host_memory_survived
from search.explore.ask import total
from search.study.explorer import PlannedTrial
from trainable.host.storage import StorageError, TakenOverError
from trainable.ray_adaptor import bundle_of, train_trial
from trainable.record import finite_score
from trainable.training.schedule import timetable

# Failures are in the tables and on the screen: Ray's own lines would cut through the live table.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

PENDING_TO_GROW = "200"
STOPPING = (StorageError, TakenOverError, NoHostError)  # what stops a study and is none of a trial


def run_trials(
    setting: Setting,
    trials: Sequence[PlannedTrial],
    cluster: Cluster,
    progress: Progress,
) -> bool:
    """Train the trials and those that the study then calls for; commit their rows as they come.

    Returns whether all of them ended. If not, SIGINT or SIGTERM came: trials that were under way
    are committed as `interrupted`. Trials that ended in earlier commands are what a scheduler
    compares with from the start.

    Raises:
        StorageError: the disk is full, or does not answer.
        TakenOverError: another process writes to the study now.
        NoHostError: workers fail on every host.
        SpaceFileError: the explorer chose what cannot be trained.
    """
    study = setting.study
    scheduler = scheduler_of(study, train_images=setting.train_images)
    record = Recorder(setting, progress, scheduler)
    if scheduler is not None:
        _teach(scheduler, setting, record)

    def send(trials: Sequence[PlannedTrial]) -> dict[str, Any]:
        for trial in trials:
            record.expect(trial)
        progress.total = total(study, setting.tables)
        return task_of(trials, setting, cluster) | {"left_out": list(record.hosts.left_out)}

    cluster_now = _looked_at(cluster)
    queue = Queue(
        study,
        setting.tables,
        trials,
        send=send,
        slots=lambda: places(study, cluster_now()),
        settle=record.settle,
    )
    record.send_alone = queue.send_alone
    # A cluster that grows starts nodes at once for all trials that wait.
    most_pending = PENDING_TO_GROW if cluster.grows else MOST_PENDING
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = most_pending
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tuner = _tuner(study.name, queue, scheduler, record, scratch)
        try:
            with host_memory_survived():
                tuner.fit()
        except tune.TuneError as error:  # what Ray makes of an error in a callback of ours
            raise _stopping_in(error) or error from None
        finally:
            record.commit_interrupted()
            forget_beats()
    return queue.finished


def _looked_at(cluster: Cluster) -> Callable[[], Cluster]:
    """The cluster as it is, not older than a few seconds; one machine stays as it is."""
    last, at = cluster, time.monotonic()

    def now() -> Cluster:
        nonlocal last, at
        if cluster.address != "local" and time.monotonic() - at > LOOK_S:
            last, at = look_again(cluster), time.monotonic()
        return last

    return now


def _tuner(
    name: str, queue: Queue, scheduler: InOrder | None, record: Recorder, scratch: str
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(train_trial, bundle_of),
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_name_creator=_trial_name,
            scheduler=scheduler or InOrder(),  # type: ignore[no-untyped-call]
            search_alg=queue,
            num_samples=-1,  # the queue says when there are no more
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch,
            verbose=0,
            callbacks=[record],
            failure_config=tune.FailureConfig(max_failures=MOST_LOST_WORKERS),
        ),
    )


def task_of(trials: Sequence[PlannedTrial], setting: Setting, cluster: Cluster) -> dict[str, Any]:
    """What a worker is told of a trial, or of the trials of a pack.

    What only the worker reads is one string: Ray keeps several copies of a config for as long as
    the study runs, and of a string all are the same object.
    """
    task = {
        "trials": [_of_member(trial, setting) for trial in trials],
        "metric": setting.study.metric,
        "data_folder": setting.data_folder,
        "data_fingerprint": setting.data_fingerprint,
        "keep_weights": setting.study.keep_weights,
        "checkpoint_every_s": setting.study.checkpoint_every_s,
        "num_cpus": setting.study.cpus_per_trial,
    }
    first = trials[0]
    config = first.config
    name = f"b{config.batch_size}-lr{config.base_lr:g}-seed{config.seed}"
    return {
        "key": first.key,
        "name": name if len(trials) == 1 else f"{name}-and-{len(trials) - 1}-more",
        "batch_size": config.batch_size,
        "total_images": _images(first, setting),
        "whole": first.whole,
        "resources": resources_of(setting.study, cluster, config),
        "pack": [trial.key for trial in trials] if len(trials) > 1 else None,
        "task": json.dumps(task),
    }


def _of_member(trial: PlannedTrial, setting: Setting) -> dict[str, Any]:
    """What a worker is told of one trial alone."""
    checkpoints = setting.results / "checkpoints"
    begins_from = trial.config.begins_from
    return {
        "key": trial.key,
        "config": asdict(trial.config),
        "checkpoint_folder": (checkpoints / trial.key).uri,
        "start_folder": (checkpoints / begins_from).uri if begins_from else None,
    }


def _images(trial: PlannedTrial, setting: Setting) -> float:
    """What a trial's own batches fill, which may be less than the largest budget."""
    return timetable(trial.config, train_images=setting.train_images).total


def _teach(scheduler: EarlyStopping | ForecastStopping, setting: Setting, record: Recorder) -> None:
    """Tell the scheduler how the trials of earlier commands went."""
    for trial in setting.tables.asked:
        if trial.key in setting.tables.ended:
            evaluations = [
                {
                    "score": finite_score(setting.study.metric, row),
                    "examples_seen": row["examples_seen"],
                }
                for row in record.rows_held(trial.key)
            ]
            config = {
                "batch_size": trial.config.batch_size,
                "total_images": _images(trial, setting),
            }
            status = setting.tables.ended[trial.key]["status"]
            scheduler.learn(trial.key, config, evaluations, status=status)


def _stopping_in(error: BaseException | None) -> OSError | RuntimeError | None:
    """The error that stops a study, but is none of a trial, among those that led to this one."""
    while error is not None and not isinstance(error, STOPPING):
        error = error.__cause__ or error.__context__
    return error


def _trial_name(trial: Any) -> str:
    """What the Ray dashboard shows for the trial's process."""
    name: str = trial.config["name"]
    return name
