"""Runs trials on Ray Tune: the only file that builds a Tuner."""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

# No CSV, JSON and TensorBoard beside our tables, and no snapshots of a state that is not used.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "100000")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are in the tables and on screen
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0

from ray import tune

from cluster.connect import Cluster
from search.execution.progress import Progress
from search.execution.recorder import Recorder, Setting
from search.execution.resources import possible_resources, resources_of, slots
from search.execution.schedulers import OptunaSearcher, scheduler_of
from search.execution.watchdog import host_memory_survived
from search.explore.optuna import Suggestions
from search.explore.plan import DONE, PlannedTrial
from search.results import tables
from search.study.study import configurations
from trainable.host.storage import NoSpaceError
from trainable.ray_adaptor import bundle_of, train_trial
from trainable.record import finite_score
from trainable.training.schedule import timetable

# Failures are in the tables and on the screen: Ray's own lines would cut through the live table.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

# For what kills a worker: a lost node, the kernel's memory killer. A trial's own errors come back
# as rows and are not retried.
MAX_LOST_WORKERS = 3


def run_trials(
    setting: Setting,
    trials: Sequence[PlannedTrial],
    cluster: Cluster,
    progress: Progress,
    suggestions: Suggestions | None = None,
    past: Sequence[PlannedTrial] = (),
) -> int:
    """Train the trials and commit their rows as they come; returns how many did not end.

    That is more than none only when interrupted: trials that were under way when SIGINT or
    SIGTERM came are then committed as `interrupted`. With `suggestions` its configurations are
    trained instead, as they come. `past` trials, which ended before, are what the scheduler
    compares with from the start.

    Raises:
        ValueError: the study's `stop` does not fit its budget.
    """
    scheduler = scheduler_of(
        setting.study,
        [config for _, config in configurations(setting.study)] or [setting.study.base],
        train_images=setting.train_images,
    )
    record = Recorder(setting, progress, scheduler)
    if scheduler is not None:
        for trial in past:
            rows = record.rows_held(trial.key)
            scheduler.learn(
                trial.key,
                trial.config.batch_size,
                [
                    {
                        "score": finite_score(setting.study.metric, row),
                        "examples_seen": row["examples_seen"],
                    }
                    for row in rows
                ],
            )

    def send(trial: PlannedTrial) -> dict[str, Any]:
        """What a worker is told of a trial."""
        record.expect(trial)
        return {
            "key": trial.key,
            "config": asdict(trial.config),
            "metric": setting.study.metric,
            "data_folder": setting.data_folder,
            "data_fingerprint": setting.data_fingerprint,
            "checkpoint_folder": (setting.results / "checkpoints" / trial.key).uri,
            "start_folder": (setting.results / "checkpoints" / begins_from).uri
            if (begins_from := trial.config.begins_from)
            else None,
            "keep_weights": setting.study.keep_weights,
            "num_cpus": setting.study.cpus_per_trial,
            # What its own batches fill, which may be less than the largest of the study.
            "total_images": timetable(trial.config, train_images=setting.train_images).total,
            "resources": resources_of(setting.study, cluster, trial.config),
        }

    tune_config = tune.TuneConfig(
        reuse_actors=True, trial_name_creator=_trial_name, scheduler=scheduler
    )
    param_space: dict[str, Any] = {}
    if suggestions is None:
        param_space["trial"] = tune.grid_search([send(trial) for trial in trials])
    else:
        held = {row["trial_key"]: row for row in tables.trials(setting.results).to_dict("records")}
        held = {key: row for key, row in held.items() if row["status"] in DONE}
        tune_config.search_alg = OptunaSearcher(suggestions, send, held)
        tune_config.num_samples = -1  # the searcher says when there are no more
        # Ray would keep one trial pending at a time for a searcher that it does not know.
        each = [slots(cluster, need) for need in possible_resources(setting.study, cluster)]
        tune_config.max_concurrent_trials = max(each)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(train_trial, bundle_of),
            param_space=param_space,
            tune_config=tune_config,
            run_config=tune.RunConfig(
                name=setting.study.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[record],
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            ),
        )
        try:
            with host_memory_survived():
                tuner.fit()
        except tune.TuneError as error:  # what Ray makes of an error in a callback of ours
            raise _no_space_in(error) or error from None
        finally:
            record.commit_interrupted()
    return len(record.expected)


def _no_space_in(error: BaseException | None) -> NoSpaceError | None:
    """The error of a full disk among those that led to this one."""
    while error is not None and not isinstance(error, NoSpaceError):
        error = error.__cause__ or error.__context__
    return error


def _trial_name(trial: Any) -> str:
    """What the Ray dashboard shows for the trial's process."""
    config = trial.config["trial"]["config"]
    return f"b{config['batch_size']}-lr{config['base_lr']:g}-seed{config['seed']}"
