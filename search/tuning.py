"""Runs trials on Ray Tune: the only file that builds a Tuner."""

import errno
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# No CSV, JSON and TensorBoard beside our tables, and no snapshots of a state that is not used.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "100000")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are in the tables and on screen
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0

from ray import tune

from cluster.connect import Cluster
from search import results as tables
from search.algorithms import EarlyStopping, OptunaSearcher, scheduler_of
from search.plan import DONE, PlannedTrial
from search.progress import Progress
from search.resources import possible_resources, resources_of, slots
from search.results import Results
from search.study import Study, configurations
from search.suggestions import Suggestions
from search.watch import HOST_MEMORY, Stalls, host_memory_survived
from trainable.ray_adaptor import bundle_of, train_trial
from trainable.record import finite_score
from trainable.schedule import timetable
from trainable.storage import NoSpaceError

# Failures are in the tables and on the screen: Ray's own lines would cut through the live table.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

# For what kills a worker: a lost node, the kernel's memory killer. A trial's own errors come back
# as rows and are not retried.
MAX_LOST_WORKERS = 3
BACKOFF_S = 1.0  # a failure, before a lost worker's trial starts again


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of one command share."""

    study: Study
    results: Results
    data_folder: str | None
    data_fingerprint: str
    train_images: int
    attempts: Mapping[str, int]
    code_version: str | None = None


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
    record = _Record(setting, progress, scheduler)
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


def one_line(text: str) -> str:
    """The end of a traceback, which names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else text


def _no_space_in(error: BaseException | None) -> NoSpaceError | None:
    """The error of a full disk among those that led to this one."""
    while error is not None and not isinstance(error, NoSpaceError):
        error = error.__cause__ or error.__context__
    return error


def _last_error(trial: Any) -> str:
    """What Ray wrote when the trial's worker was last lost; empty where it wrote nothing."""
    try:
        return str(Path(trial.error_file).read_text().rpartition("Failure #")[2])
    except (OSError, TypeError):
        return ""


def _trial_name(trial: Any) -> str:
    """What the Ray dashboard shows for the trial's process."""
    config = trial.config["trial"]["config"]
    return f"b{config['batch_size']}-lr{config['base_lr']:g}-seed{config['seed']}"


class _Record(tune.Callback):
    """Commits what trials report, the moment it comes, and tells the screen."""

    def __init__(
        self, setting: Setting, progress: Progress, scheduler: EarlyStopping | None
    ) -> None:
        """Begin with nothing expected."""
        self.setting, self.progress, self.scheduler = setting, progress, scheduler
        self.stalls = Stalls()
        self.lost_because: dict[str, str] = {}
        self.planned: dict[str, PlannedTrial] = {}
        self.attempt: dict[str, int] = {}
        self.expected: set[str] = set()
        self.under_way: dict[str, Mapping[str, Any]] = {}
        self.rows: dict[str, dict[int, Mapping[str, Any]]] = {}
        self.held = tables.epochs(setting.results).groupby("trial_key")

    def expect(self, trial: PlannedTrial) -> None:
        """A trial will be sent: go on from the rows that the tables hold of it."""
        self.planned[trial.key] = trial
        self.expected.add(trial.key)
        self.progress.planned[trial.key] = trial
        self.attempt[trial.key] = self.setting.attempts.get(trial.key, 0) + 1
        self.rows[trial.key] = {row["epoch"]: row for row in self.rows_held(trial.key)}

    def rows_held(self, key: str) -> list[dict[str, Any]]:
        """A trial's evaluations in the tables when the command began, by epoch."""
        if key not in self.held.groups:
            return []
        rows = self.held.get_group(key).sort_values("epoch").to_dict("records")
        # A whole number that a row lacks is NaN to pandas, which its column would not take back.
        return [
            {n: v for n, v in row.items() if v == v or tables.EPOCHS.field(n).type == "double"}
            for row in rows
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray keeps a copy of callbacks for a restore, which is not our way to resume."""
        return {}

    def _key(self, trial: Any) -> str:
        key: str = trial.config["trial"]["key"]
        return key

    def _identity(self, key: str) -> dict[str, Any]:
        return {
            "study": self.setting.study.name,
            "trial_key": key,
            "seed": self.planned[key].config.seed,
            "attempt": self.attempt[key],
        }

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray looks around: so does the watch over hung workers."""
        for trial_id in self.stalls.end_the_hung(trials):
            self.lost_because[trial_id] = "it reported nothing for too long"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation, or a trial's end."""
        key = self._key(trial)
        self.stalls.reported(trial.trial_id)
        if "epoch_row" in result:
            row = self._identity(key) | result["epoch_row"]
            self.under_way[key] = self.rows[key][row["epoch"]] = row
            self._commit_epochs(key)
            self.progress.epoch_ended(key, row)
        elif "trial_row" in result:
            row = result["trial_row"]
            if row["status"] == "interrupted":  # there is no room: no trial would fare better
                raise NoSpaceError(errno.ENOSPC, row["reason"])
            self._end(key, row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended by itself, and its row is there; or its scheduler stopped it."""
        reason = self.scheduler.reasons.get(trial.trial_id) if self.scheduler else None
        key = self._key(trial)
        if reason is not None and key in self.under_way:
            self._end(key, self._so_far("stopped", reason, self.under_way[key]))
        # Ray keeps a history of every metric of every trial, which would grow with the study.
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker was lost: what follows is another attempt.

        A node that ran out of memory is given one more chance: then the trial is too large for it.
        """
        self.attempt[self._key(trial)] += 1
        self.stalls.began_again(trial.trial_id)
        failures = trial.run_metadata.num_failures
        if HOST_MEMORY in _last_error(trial):
            trial.max_failures = failures
        time.sleep(BACKOFF_S * failures)  # a node that is going away takes the next one along

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its workers were lost too often."""
        error = _last_error(trial) or "nothing more is known"
        failures = trial.run_metadata.num_failures
        why = self.lost_because.get(trial.trial_id) or one_line(error)
        reason = f"its worker ended {failures} times: {why}"
        if HOST_MEMORY in error:
            reason = f"{HOST_MEMORY}, {failures} times"
        self._end(self._key(trial), {"status": "failed", "reason": reason, "traceback": error})

    def _commit_epochs(self, key: str) -> None:
        rows = [self.rows[key][epoch] for epoch in sorted(self.rows[key])]
        tables.commit_epochs(self.setting.results, key, rows)

    def _end(self, key: str, ending: Mapping[str, Any]) -> None:
        row = dict(ending)
        if traceback := row.pop("traceback", None):
            where = tables.commit_traceback(self.setting.results, key, traceback)
            row["reason"] = f"{row['reason']} (traceback: {where})"
        completed = row.get("epochs_completed")
        if completed is not None and len(self.rows[key]) > completed:
            # An earlier attempt got further than this one, which diverged before.
            self.rows[key] = {e: r for e, r in self.rows[key].items() if e <= completed}
            self._commit_epochs(key)
        self._commit_trial(key, row)
        goes_on = row["status"] == "stopped" and self.planned[key].config.until_share < 1
        # A failed one may be tried again, from where it was.
        if row["status"] != "failed" and not goes_on:
            from trainable import checkpoint  # torch, which a command with nothing to run spares

            checkpoint.delete(self.setting.results / "checkpoints" / key)
        self.under_way.pop(key, None)
        self.expected.discard(key)
        self.progress.trial_ended(key, row)

    def _commit_trial(self, key: str, row: Mapping[str, Any]) -> None:
        about = {
            "data_fingerprint": self.setting.data_fingerprint,
            "code_version": self.setting.code_version,
        }
        config = asdict(self.planned[key].config)
        tables.commit_trial(self.setting.results, {**config, **about, **self._identity(key), **row})

    def _so_far(self, status: str, reason: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a trial that did not end by itself: its scores are those of its last epoch."""
        scores = {name: row[name] for name in row if name.startswith("val_")}
        return {
            "status": status,
            "reason": reason,
            **{name: value for name, value in scores.items() if name in tables.TRIALS.names},
            "examples_seen": row["examples_seen"],
            "epochs_completed": row["epoch"],
            "updates_completed": row["updates"],
            "images_per_s": row["images_per_s"],
            "train_wall_s": sum(r["epoch_wall_s"] for r in self.rows[row["trial_key"]].values()),
        }

    def commit_interrupted(self) -> None:
        """Note the trials that were under way when the command was stopped."""
        try:
            for key, row in self.under_way.items():
                self._commit_trial(key, self._so_far("interrupted", "", row))
        except NoSpaceError:  # which is why the study stops: the epochs' rows say how far each got
            return
