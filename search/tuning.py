"""Runs trials on Ray Tune: the only file that builds a Tuner."""

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

# No CSV, JSON and TensorBoard beside our tables, and no snapshots of a state that is not used.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "100000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0

from ray import tune

from cluster.connect import Cluster
from search import results as tables
from search.plan import PlannedTrial
from search.progress import Progress
from search.results import Results
from search.study import Study
from trainable import checkpoint
from trainable.ray_adaptor import train_trial

# For what kills a worker: a lost node, the kernel's memory killer. A trial's own errors come back
# as rows and are not retried.
MAX_LOST_WORKERS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of one command share."""

    study: Study
    results: Results
    data_folder: str | None
    data_fingerprint: str
    attempts: Mapping[str, int]


def resources_of(study: Study, cluster: Cluster) -> dict[str, float]:
    """What a trial takes: GPUs where the cluster has any, else cores."""
    resources: dict[str, float] = {"CPU": study.cpus_per_trial}
    if cluster.num_gpus and study.gpus_per_trial:
        resources["GPU"] = study.gpus_per_trial
    return resources


def run_trials(
    setting: Setting, trials: Sequence[PlannedTrial], cluster: Cluster, progress: Progress
) -> None:
    """Train the trials and commit their rows as they come; returns early when interrupted.

    Trials that were under way when SIGINT or SIGTERM came are committed as `interrupted`.
    """
    resources = resources_of(setting.study, cluster)
    record = _Record(setting, trials, progress)
    checkpoints = setting.results / "checkpoints"
    sent = [
        {
            "key": trial.key,
            "config": asdict(trial.config),
            "data_folder": setting.data_folder,
            "data_fingerprint": setting.data_fingerprint,
            "checkpoint_folder": (checkpoints / trial.key).uri,
            "keep_weights": setting.study.keep_weights,
            "num_cpus": setting.study.cpus_per_trial,
            "num_gpus": resources.get("GPU", 0),
        }
        for trial in trials
    ]
    with tempfile.TemporaryDirectory() as scratch, _sigterm_as_sigint():
        tuner = tune.Tuner(
            tune.with_resources(train_trial, resources),
            param_space={"trial": tune.grid_search(sent)},
            tune_config=tune.TuneConfig(reuse_actors=True, trial_name_creator=_trial_name),
            run_config=tune.RunConfig(
                name=setting.study.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[record],
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            ),
        )
        tuner.fit()
    record.commit_interrupted()


def _trial_name(trial: Any) -> str:
    """What the Ray dashboard shows for the trial's process."""
    config = trial.config["trial"]["config"]
    return f"b{config['batch_size']}-lr{config['base_lr']:g}-seed{config['seed']}"


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """While trials run SIGTERM stops them as Ctrl-C does: what is done is kept."""

    def interrupt(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Record(tune.Callback):
    """Commits what trials report, the moment it comes, and tells the screen."""

    def __init__(
        self, setting: Setting, trials: Sequence[PlannedTrial], progress: Progress
    ) -> None:
        """Begin from the rows that the tables already hold of these trials."""
        self.setting, self.progress = setting, progress
        self.planned = {trial.key: trial for trial in trials}
        self.attempt = {key: setting.attempts.get(key, 0) + 1 for key in self.planned}
        self.under_way: dict[str, Mapping[str, Any]] = {}
        self.rows: dict[str, dict[int, Mapping[str, Any]]] = {key: {} for key in self.planned}
        held = tables.epochs(setting.results)
        for row in held[held["trial_key"].isin(self.planned)].to_dict("records"):
            self.rows[row["trial_key"]][row["epoch"]] = row

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

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation, or a trial's end."""
        key = self._key(trial)
        if "epoch_row" in result:
            row = result["epoch_row"]
            self.under_way[key] = row
            self.rows[key][row["epoch"]] = self._identity(key) | row
            self._commit_epochs(key)
            self.progress.epoch_ended(key, row)
        elif "trial_row" in result:
            self._end(key, result["trial_row"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker was lost: what follows is another attempt."""
        self.attempt[self._key(trial)] += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its workers were lost too often."""
        error = trial.get_error()
        reason = f"worker lost {MAX_LOST_WORKERS + 1} times: {type(error).__name__}"
        self._end(self._key(trial), {"status": "failed", "reason": reason, "traceback": str(error)})

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
        if row["status"] != "failed":
            checkpoint.delete(self.setting.results / "checkpoints" / key)
        self.under_way.pop(key, None)
        self.progress.trial_ended(key, row)

    def _commit_trial(self, key: str, row: Mapping[str, Any]) -> None:
        about = {"data_fingerprint": self.setting.data_fingerprint}
        config = asdict(self.planned[key].config)
        tables.commit_trial(self.setting.results, {**config, **about, **self._identity(key), **row})

    def commit_interrupted(self) -> None:
        """Note the trials that were under way when the command was stopped."""
        for key, row in self.under_way.items():
            shared = {k: row[k] for k in ("examples_seen", "val_auroc", "val_accuracy", "val_loss")}
            done = {"epochs_completed": row["epoch"], "updates_completed": row["updates"]}
            self._commit_trial(key, {"status": "interrupted", "reason": ""} | shared | done)
