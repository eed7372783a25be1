"""Commits what trials report, as soon as it comes."""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback

from search.execution.forecast_stopping import ForecastStopping
from search.execution.gauges import Gauges
from search.execution.hosts import Hosts, nodes_with_cores
from search.execution.nodes import Needs, Newcomers
from search.execution.packs import key_of, keys_of
from search.execution.progress import Progress
from search.execution.schedulers import EarlyStopping
from search.execution.watchdog import HOST_MEMORY, Stalls
from search.results import tables
from search.results.tables import Results
from search.results.writer import Writer
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.host import storage
from trainable.host.signals import before_interrupt
from trainable.host.storage import StorageError, TakenOverError
from trainable.ray_adaptor import bundle_of
from trainable.training.schedule import peak_lr

MOST_FORGOTTEN = 100  # ended trials on Ray's list, before they are taken off it
# How often a trial's worker may be lost without a new evaluation in between: by itself (the
# kernel's memory killer, a crash), or with its node (a spot node that was taken back).
MOST_LOST_WORKERS, MOST_LOST_NODES = 3, 10


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of one command share."""

    study: Study
    results: Results
    data_folder: str | None
    dataset: str  # the name of what was read, which `study.base.dataset` may not be
    split: str
    data_fingerprint: str
    train_images: int
    tables: Tables
    attempts: Mapping[str, int]
    code_version: str | None = None
    needs: Needs | None = None  # what nodes that join must have; None on one machine
    nodes_asked: frozenset[str] = frozenset()  # the ids of those that have it


class Recorder(TrialProgressCallback):
    """Commits what trials report, as soon as it comes, and tells the screen.

    A `Writer` writes beside it. A trial counts as ended, for the screen and for explorers, when its
    row is written.

    It takes the place of Ray's own callback of this class, which would keep each trial's last
    result as text.
    """

    def __init__(
        self,
        setting: Setting,
        progress: Progress,
        scheduler: EarlyStopping | ForecastStopping | None,
    ) -> None:
        """Begin with nothing expected."""
        self.setting, self.progress, self.scheduler = setting, progress, scheduler
        self.stalls, self.hosts = Stalls(), Hosts()
        self.newcomers: Newcomers | None = None  # these two from `setup` on, when Ray is there
        self.gauges: Gauges | None = None
        self.lost_on: dict[str, list[str]] = {}  # by trial id, the nodes of its lost workers
        self.lost_because: dict[str, str] = {}
        self.too_large: set[str] = set()  # ids of trials for which a node had too little memory
        self.tracebacks: dict[str, str] = {}  # by trial id, of what its host could not do
        self.planned: dict[str, PlannedTrial] = {}
        self.attempt: dict[str, int] = {}
        self.send_alone: Callable[[Sequence[PlannedTrial]], None]  # set by who has the queue
        self.num_forgotten = 0
        self.storage: Any = None
        self.under_way: dict[str, Mapping[str, Any]] = {}
        self.ending: dict[str, PlannedTrial] = {}  # whose rows are still being written
        self.rows: dict[str, dict[int, Mapping[str, Any]]] = {}
        self.writer = Writer(setting.results)
        self.held = self._not_ended()
        self.past = self._compared_with() if scheduler is not None else None

    def expect(self, trial: PlannedTrial) -> None:
        """A trial will be sent: go on from the rows that the tables hold of it."""
        is_known = trial.key in self.planned  # its pack was lost
        self.planned[trial.key] = trial
        if is_known:
            self.attempt[trial.key] += 1
            return
        self.attempt[trial.key] = self.setting.attempts.get(trial.key, 0) + 1
        self.rows[trial.key] = {row["epoch"]: row for row in self.rows_held(trial.key)}

    def _not_ended(self) -> Any:
        """The evaluations of trials that go on: those of ended ones may be millions."""
        ended = self.setting.tables.ended
        return tables.epochs(self.setting.results, but=ended).groupby("trial_key")

    def _compared_with(self) -> Any:
        """What a scheduler asks of the evaluations of trials that ended before."""
        columns = ["trial_key", "epoch", "examples_seen", self.setting.study.metric]
        return tables.epochs(self.setting.results, columns=columns).groupby("trial_key")

    def rows_held(self, key: str) -> list[dict[str, Any]]:
        """A trial's evaluations in the tables when the command began, by epoch."""
        held = self.held if key in self.held.groups or self.past is None else self.past
        if key not in held.groups:
            return []
        rows = held.get_group(key).sort_values("epoch").to_dict("records")
        # A whole number that a row lacks is NaN to pandas, which its column would not take back.
        return [
            {n: v for n, v in row.items() if v == v or tables.EPOCHS.field(n).type == "double"}
            for row in rows
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray keeps a copy of callbacks for a restore, which is not our way to resume."""
        return {}

    def _identity(self, key: str) -> dict[str, Any]:
        return {
            "study": self.setting.study.name,
            "trial_key": key,
            "seed": self.planned[key].config.seed,
            "attempt": self.attempt[key],
        }

    def setup(self, *info: Any, **more: Any) -> None:
        """Let Ctrl-C be answered at once: Ray, whose handler is there by now, takes seconds."""
        before_interrupt(self.progress.stopping)
        study = self.setting.study
        self.gauges = Gauges(study.name, study.metric, self.progress)
        if self.setting.needs is not None:
            known = self.setting.nodes_asked
            self.newcomers = Newcomers(self.setting.needs, self.hosts, known)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look for hung workers and for new nodes on every controller step."""
        for sentence in self.newcomers.look() if self.newcomers else ():
            self.progress.note(sentence)
        self.lost_because.update(self.stalls.end_the_hung(trials))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Note whose rows were written; take ended trials off the list that Ray looks through."""
        self._note_ended()
        if self.gauges is not None:
            self.gauges.show()
        if self.num_forgotten > MOST_FORGOTTEN:
            trials[:] = [trial for trial in trials if not trial.is_finished()]
            self.num_forgotten = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker is there for it."""
        keys = keys_of(trial)
        for key in keys:
            self.progress.trial_started(self.planned[key])
        if len(keys) > 1:
            trial.max_failures = 0  # those of a lost pack are sent again, each alone

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation, or a trial's end."""
        key = key_of(trial, result)
        if "host_error" in result:
            self._host_failed(key, trial, result["host_error"])
        elif not self._is_under_way(key):
            return  # stopped, and its worker has yet to hear of it
        elif "epoch_row" in result:
            self.stalls.reported(trial.trial_id)
            row = self._identity(key) | result["epoch_row"]
            if row["epoch"] not in self.rows[key]:
                self._got_on(trial)
            self.under_way[key] = self.rows[key][row["epoch"]] = row
            self._commit_epochs(key)
            self.progress.epoch_ended(self.planned[key], row)
            if self.gauges is not None:
                self.gauges.evaluated()
            if self.scheduler and (reason := self.scheduler.reasons.get(key)):
                self._end(key, self._so_far("stopped", reason, row) | self._forecast_of(key))
        elif "trial_row" in result:
            row = result["trial_row"]
            if row["status"] == "interrupted":  # it cannot store: no trial would fare better
                raise StorageError(errno.EIO, row["reason"])
            self._end(key, row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """All that it stood for have ended."""
        self._forget(trial, keys_of(trial))

    def _forecast_of(self, key: str) -> dict[str, float]:
        """The final score that a stopped trial was forecast to have, in the metric's own sign."""
        if not isinstance(self.scheduler, ForecastStopping):
            return {}
        predicted = self.scheduler.forecasts.pop(key)
        sign = 1.0 if self.setting.study.mode == "max" else -1.0
        return {"forecast": sign * predicted.mean, "forecast_std": predicted.std}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker was lost: what follows is another attempt. No pack is given one.

        A node that ran out of memory is given one more chance: then the trial is too large for it.
        """
        key = trial.config["key"]
        self.attempt[key] += 1
        lost_on = self.lost_on.setdefault(trial.trial_id, [])
        lost_on.append(self.stalls.node_of(trial.trial_id))
        self.stalls.began_again(trial.trial_id)
        there = {"", *nodes_with_cores()} - set(self.hosts.left_out)
        num_by_itself = sum(node in there for node in lost_on)
        may_be_lost = MOST_LOST_WORKERS - num_by_itself
        if HOST_MEMORY in _last_error(trial):
            self.too_large.add(trial.trial_id)
            may_be_lost = 0
        elif len(lost_on) - num_by_itself >= MOST_LOST_NODES:
            may_be_lost = 0
        trial.max_failures = trial.run_metadata.num_failures + max(0, may_be_lost)
        self.tracebacks.pop(trial.trial_id, None)
        why = self.lost_because.pop(trial.trial_id, None) or one_line(_last_error(trial))
        name = self.progress.name_of(self.planned[key])
        self.progress.note(
            f"{name}: its worker was lost and it starts again{f': {why}' * bool(why)}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its workers were lost too often, or that of a pack once."""
        keys = keys_of(trial)
        if len(keys) > 1:
            self._send_alone(trial, keys)
            return
        told = self.tracebacks.get(trial.trial_id) or _last_error(trial)
        error = told or "nothing more is known"
        failures = trial.run_metadata.num_failures
        why = self.lost_because.get(trial.trial_id) or one_line(error)
        reason = f"its worker ended {failures} times: {why}"
        if HOST_MEMORY in error:
            reason = f"{HOST_MEMORY}, {failures} times"
        self._end(keys[0], {"status": "failed", "reason": reason, "traceback": error})
        self._forget(trial, keys)

    def _send_alone(self, trial: Any, keys: Sequence[str]) -> None:
        """Send the trials of a lost pack again: the next worker is lost for one of them at most."""
        why = self.lost_because.pop(trial.trial_id, None) or one_line(_last_error(trial))
        again = [self.planned[key] for key in keys if self._is_under_way(key)]
        names = "; ".join(self.progress.name_of(planned) for planned in again)
        self.progress.note(
            f"the worker of {len(keys)} trials was lost{f': {why}' * bool(why)}; "
            f"each goes on alone: {names}"
        )
        self.send_alone(again)
        self._forget(trial, [key for key in keys if not self._is_under_way(key)])

    def _is_under_way(self, key: str) -> bool:
        """Whether a trial that was sent has not ended."""
        ended = self.setting.tables.ended
        return key in self.planned and key not in self.ending and key not in ended

    def _got_on(self, trial: Any) -> None:
        """A trial reported an evaluation that is new: what was lost before does not count."""
        self.hosts.got_on(self.stalls.node_of(trial.trial_id))
        if self.lost_on.pop(trial.trial_id, None) and trial.trial_id not in self.too_large:
            trial.max_failures = trial.run_metadata.num_failures + MOST_LOST_WORKERS

    def _host_failed(self, key: str, trial: Any, error: Mapping[str, Any]) -> None:
        """A worker is about to end because its host cannot train."""
        self.lost_because[trial.trial_id] = f"{error['reason']} (on {error['host']})"
        self.tracebacks[trial.trial_id] = error["traceback"]
        if sentence := self.hosts.failed(key, error):
            self.progress.note(sentence)
        if self.hosts.left_out:
            # Its next attempt. Once it waits again, Ray has filed it under what it asks for now.
            trial.placement_group_factory = bundle_of(trial.config, self.hosts.left_out)

    def _forget(self, trial: Any, keys: Sequence[str]) -> None:
        """Drop what is no longer needed of ended trials: it would grow with the study."""
        for kept in (self.planned, self.rows, self.attempt):
            for key in keys:
                kept.pop(key, None)
        for kept_by_id in (self.lost_on, self.lost_because, self.tracebacks):
            kept_by_id.pop(trial.trial_id, None)
        self.too_large.discard(trial.trial_id)
        # Ray keeps every trial, with its config three times, its last result and their history.
        trial.config = trial.evaluated_params = trial._Trial__unresolved_config = {}
        trial.experiment_tag = trial.relative_logdir = ""
        self.storage = trial.storage = self.storage or trial.storage
        trial.run_metadata.last_result = {"done": True}
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        self.num_forgotten += 1

    def _commit_epochs(self, key: str) -> None:
        self.writer.epochs(key, [self.rows[key][epoch] for epoch in sorted(self.rows[key])])

    def _end(self, key: str, ending: Mapping[str, Any]) -> None:
        completed = ending.get("epochs_completed")
        if completed is not None and len(self.rows[key]) > completed:
            # An earlier attempt got further than this one, which diverged before.
            self.rows[key] = {e: r for e, r in self.rows[key].items() if e <= completed}
            self._commit_epochs(key)
        planned, identity = self.planned[key], self._identity(key)
        self.under_way.pop(key, None)
        self.ending[key] = planned
        self.writer.ending(key, lambda: self._write_ending(planned, identity, ending))

    def _write_ending(
        self, planned: PlannedTrial, identity: Mapping[str, Any], ending: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Write an ended trial's row, beside the driver; its state goes where nothing needs it."""
        key, results = planned.key, self.setting.results
        row = dict(ending)
        if traceback := row.pop("traceback", None):
            where = tables.commit_traceback(results, key, traceback)
            row["reason"] = f"{row['reason']} (traceback: {where})"
        self._write_trial(planned, identity, row)
        goes_on = row["status"] == "stopped" and planned.config.until_share < 1
        # A failed one may be tried again, from where it was.
        if row["status"] != "failed" and not goes_on:
            from trainable import checkpoint  # torch, which a command with nothing to run spares

            checkpoint.delete(results / "checkpoints" / key)
        return row

    def _write_trial(
        self, planned: PlannedTrial, identity: Mapping[str, Any], row: Mapping[str, Any]
    ) -> None:
        made_with = {
            "dataset": self.setting.dataset,
            "split": self.setting.split,
            "data_fingerprint": self.setting.data_fingerprint,
            "code_version": self.setting.code_version,
        }
        tables.commit_trial(
            self.setting.results, {**asdict(planned.config), **made_with, **identity, **row}
        )

    def _note_ended(self) -> None:
        """Tell explorers and the screen of trials whose rows were written."""
        for key, row in self.writer.take_ended().items():
            metric = self.setting.study.metric
            self.setting.tables.ended[key] = tables.ending_of(row, metric=metric)
            self.progress.trial_ended(self.ending.pop(key), row)
            if self.gauges is not None:
                self.gauges.trial_ended(row)

    def settle(self) -> None:
        """Wait until all that ended is written and known."""
        self.writer.settle()
        self._note_ended()

    def _so_far(self, status: str, reason: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a trial that did not end by itself: its scores are those of its last epoch."""
        scores = {name: row[name] for name in row if name.startswith("val_")}
        return {
            "status": status,
            "reason": reason,
            "peak_lr": peak_lr(self.planned[row["trial_key"]].config),
            **{name: value for name, value in scores.items() if name in tables.TRIALS.names},
            "examples_seen": row["examples_seen"],
            "epochs_completed": row["epoch"],
            "updates_completed": row["updates"],
            "images_per_s": row["images_per_s"],
            "train_wall_s": sum(r["epoch_wall_s"] for r in self.rows[row["trial_key"]].values()),
        }

    def commit_interrupted(self) -> None:
        """Write all that waits, and note the trials that were under way when the command ended."""
        try:
            for key, row in self.under_way.items():
                self._note_interrupted(key, self._so_far("interrupted", "", row))
            self.writer.close()
            self._note_ended()
        except (StorageError, TakenOverError):
            # Which is why the study stops. The epochs' rows say how far each got.
            return

    def _note_interrupted(self, key: str, row: Mapping[str, Any]) -> None:
        planned, identity = self.planned[key], self._identity(key)

        def write() -> None:
            self._write_trial(planned, identity, row)

        self.writer.ending(key, write)


def delete_states(results: Results, trials: Sequence[PlannedTrial]) -> None:
    """Remove what later generations went on from, once there are none to come."""
    for trial in trials:
        if trial.config.until_share < 1:
            folder = results / "checkpoints" / trial.key
            if storage.names(folder, ".pt"):
                from trainable import checkpoint  # torch, which a study at its end may spare

                checkpoint.delete(folder)


def one_line(text: str) -> str:
    """The end of a traceback, which names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else text


def _last_error(trial: Any) -> str:
    """What Ray wrote when the trial's worker was last lost; empty where it wrote nothing."""
    try:
        return str(Path(trial.error_file).read_text().rpartition("Failure #")[2])
    except (OSError, TypeError):
        return ""
